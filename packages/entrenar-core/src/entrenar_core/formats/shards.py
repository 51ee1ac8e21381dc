"""The shards of a model: those that no index lists, and where an index and the headers of its shards differ.

Whoever fetches the shards of a model one by one often lacks the index. Names such as `model-00001-of-00003.safetensors`
say how many there are, and the shards themselves what is in them, so that all of them together are looked at as the
model that they are.

Source: huggingface_hub.split_torch_state_dict_into_shards, which names them.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from entrenar_core.errors import UnsoundFileError
from entrenar_core.formats.names import shown
from entrenar_core.formats.tensors import Fault, StoredTensor

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,6})-of-(?P<count>\d{1,6})(?P<suffix>\.\w+)")


def shards_by_name(names: Collection[str], where: str) -> tuple[str, ...]:
    """The shards in their order, where these names are those of all shards of one model, and nothing else.

    Raises:
        UnsoundFileError: some are missing; the error says which. Errors call the folder `where`.
    """
    found = [match for name in names if (match := _SHARD.fullmatch(name)) is not None]
    models = {match.group("stem", "count", "suffix") for match in found}
    there = {int(match["number"]): match[0] for match in found}
    if len(models) != 1 or len(there) != len(names):
        return ()
    ((stem, total, suffix),) = models
    if min(there) < 1 or max(there) > int(total):
        return ()
    width = max(len(match["number"]) for match in found)
    every = [f"{stem}-{number:0{width}}-of-{total}{suffix}" for number in range(1, int(total) + 1)]
    given = set(names)
    if len(there) < len(every):
        raise _incomplete(where, len(every), [name for name in every if name not in given])
    return tuple(there[number] for number in sorted(there))


def _incomplete(where: str, count: int, lacking: Sequence[str]) -> UnsoundFileError:
    more = f" and {len(lacking) - 5:,} more" if len(lacking) > 5 else ""
    there = f"{count - len(lacking):,} of {count:,} shards"
    return UnsoundFileError(f"{where} has {there}, and lacks {', '.join(lacking[:5])}{more}", "fetch the missing ones")


def index_faults(tensors: Mapping[str, StoredTensor], placed: Mapping[str, str], total_size: Any) -> list[Fault]:
    """Where an index and the headers of its shards differ. `total_size` is what it says that all tensors take."""
    found = [f"the index lists {name}, which no shard has" for name in placed if name not in tensors]
    found += [
        f"the index does not list {name}, which {tensors[name].file} has" for name in tensors if name not in placed
    ]
    found += [
        f"the index has {name} in {placed[name]}, and it is in {tensor.file}"
        for name, tensor in tensors.items()
        if placed.get(name, tensor.file) != tensor.file
    ]
    faults = [Fault("shards", message) for message in found]
    sizes = [tensor.size_bytes for tensor in tensors.values()]
    total, said = sum(sizes), isinstance(total_size, int | float)
    # some programs count a tensor twice that two names share, and store it once: the embeddings, the largest of all
    if said and not faults and not total <= total_size <= total + max(sizes, default=0):
        message = f"the index says that its tensors take {shown(f'{total_size:,}')} bytes, and they take {total:,}"
        faults.append(Fault("shards", message, harmless=True))
    return faults
