"""Which matrices of a model are meant by a group of them or by names."""

import difflib
import re
from collections.abc import Callable, Sequence

from entrenar_core.architectures.detection import detect
from entrenar_core.config.adapters import GROUPS
from entrenar_core.errors import UsageError
from entrenar_core.formats.names import shown
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.models.adapter_targets import ALL_LINEAR, targets_of_group
from entrenar_core.stored_model import StoredModel

Wanted = Callable[[str, StoredTensor], bool]
"""Whether a module, whose matrix is the tensor, is meant."""
_WEIGHT = ".weight"
_NO_LINEAR = ("relative_attention_bias", "position_embeddings", "word_embeddings", "token_type_embeddings")
"""What embeddings inside of layers are called."""
_NUMBER = re.compile(r"(?:^|\.)\d+(?:\.|$)")


def wanted_modules(tuned: StoredModel, targets: tuple[str, ...] | None) -> Wanted:
    """Tells whether a module is one of those that are meant: by names as peft matches them, or by a group; all linear
    layers, if nothing is given.

    Raises:
        UsageError: a name is none of the model's.
    """
    embeddings = _embeddings(tuned)

    def is_linear(module: str, tensor: StoredTensor) -> bool:
        inside = _NUMBER.search(module) is not None
        return inside and tensor.name not in embeddings and module.rpartition(".")[2] not in _NO_LINEAR

    if targets is None or targets == (ALL_LINEAR,):
        return is_linear
    names: Sequence[str] = targets
    if len(names) == 1 and (group := next((one for one in GROUPS if one == names[0]), None)) is not None:
        known = targets_of_group(tuned.config or {}, group)
        if known is None or isinstance(known, str):
            raise UsageError(
                f"which modules {group} means in {tuned.reference} is not known", "name them: --targets q_proj,v_proj"
            )
        names = known
    _require_known(names, tuned)
    return lambda module, _: any(module == name or module.endswith(f".{name}") for name in names)


def _embeddings(model: StoredModel) -> frozenset[str]:
    found = detect({name: tensor.shape for name, tensor in model.tensors.items()})
    return frozenset(found.embeddings) if found is not None else frozenset()


def _require_known(names: Sequence[str], model: StoredModel) -> None:
    modules = [name.removesuffix(_WEIGHT) for name, tensor in model.tensors.items() if len(tensor.shape) == 2]
    for name in names:
        if not any(module == name or module.endswith(f".{name}") for module in modules):
            last = sorted({module.rpartition(".")[2] for module in modules})
            close = difflib.get_close_matches(name, last, n=3, cutoff=0.4) or last[:8]
            raise UsageError(f"{model.reference} has no matrix {shown(name)}", f"it has {', '.join(close)}")
