"""Which tensors of two models are one tensor under two names.

Programs that wrap a model put something before all of its names (`module.`, `model.`, `_orig_mod.`), and a family calls
its body by its own name (`bert.`, `roberta.`). So where one such beginning explains more than half of the smaller
model, and shapes agree, names alone tell it, and contents may have moved. Of what is left, a tensor was renamed if the
other side has one of the same dtype, shape and bytes; for that, only such candidates are read, and only where both lie
here.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Literal

from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.tree import MAX_DEPTH

Tensors = Mapping[str, StoredTensor]

_LEAST = 2  # tensors that show that a beginning is one
_HEADS, _DEEPEST = 8, 3  # beginnings that are looked at for one end, and dots in one: strangers may write any number
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True, slots=True)
class Renaming:
    """Tensors that were renamed in one way: `old` and `new` have `*` for what is in both names. `names` has them all,
    the old with the new. `by` is what tells it: their names and shapes, or their content, which is the same then.
    """

    old: str
    new: str
    names: Mapping[str, str]
    by: Literal["names", "content"]


def renamings(first: StoredModel, second: StoredModel) -> list[Renaming]:
    """What has another name in the second model, in groups of one pattern each.

    Raises:
        ModelError: a tensor cannot be read.
    """
    found = []
    if (beginning := _beginning(first.tensors, second.tensors)) is not None:
        found.append(beginning)
    if first.is_here and second.is_here:
        known = {} if beginning is None else beginning.names
        old = {name: tensor for name, tensor in first.tensors.items() if name not in known}
        taken = set(known.values())
        new = {name: tensor for name, tensor in second.tensors.items() if name not in taken}
        found += _by_pattern(_by_content(first, second, *_alike(old, new)))
    return found


def _beginning(first: Tensors, second: Tensors) -> Renaming | None:
    """The one beginning of names that most of the smaller model has another of, or none of."""
    old = [name for name in first if name not in second]
    new = [name for name in second if name not in first]
    for before, after in islice(_likeliest(old, new), 3):
        renamed = dict(_exchanged(old, set(new), before, after))
        alike = sum(first[name].shape == second[now].shape for name, now in renamed.items())
        most = 2 * len(renamed) > min(len(first), len(second))
        if len(renamed) >= _LEAST and most and 10 * alike >= 9 * len(renamed):
            return Renaming(f"{before}*", f"{after}*", renamed, "names")
    return None


def _likeliest(old: Sequence[str], new: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Beginnings and what they became, those first that most names agree on."""
    agreed: Counter[tuple[str, str]] = Counter()
    agreed.update((before, "") for before in _stripped(old, set(new)))
    agreed.update(("", after) for after in _stripped(new, set(old)))
    agreed.update(_replaced(old, new))
    yield from (pair for pair, _ in agreed.most_common())


def _replaced(old: Iterable[str], new: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What names start with where others start with something else, and go on alike."""
    heads: defaultdict[str, list[str]] = defaultdict(list)
    for name in new:
        for head, tail in _cut(name):
            if len(heads[tail]) < _HEADS:
                heads[tail].append(head)
    for name in old:
        for head, tail in _cut(name):
            last = head.rsplit(".", 2)[-2]
            yield from ((head, other) for other in heads.get(tail, ()) if other.rsplit(".", 2)[-2] != last)


def _cut(name: str) -> Iterator[tuple[str, str]]:
    """A name in two, after each of its first dots."""
    at = -1
    for _ in range(_DEEPEST):
        at = name.find(".", at + 1)
        if at < 0:
            return
        yield name[: at + 1], name[at + 1 :]


def _stripped(names: Iterable[str], others: set[str]) -> Iterator[str]:
    """What has to be taken from the start of names to get those of others."""
    for name in names:
        at = -1
        for _ in range(MAX_DEPTH):
            at = name.find(".", at + 1)
            if at < 0:
                break
            if name[at + 1 :] in others:
                yield name[: at + 1]


def _exchanged(old: Iterable[str], new: set[str], before: str, after: str) -> Iterator[tuple[str, str]]:
    for name in old:
        now = after + name[len(before) :]
        if name.startswith(before) and now in new:
            yield name, now


def _alike(first: Tensors, second: Tensors) -> tuple[list[StoredTensor], list[StoredTensor]]:
    """The tensors that one side alone has, of a dtype and shape that one of the other side's has too."""
    old = [tensor for name, tensor in first.items() if name not in second]
    new = [tensor for name, tensor in second.items() if name not in first]
    kinds = {_kind(tensor) for tensor in old} & {_kind(tensor) for tensor in new}
    return [tensor for tensor in old if _kind(tensor) in kinds], [tensor for tensor in new if _kind(tensor) in kinds]


def _kind(tensor: StoredTensor) -> tuple[str, tuple[int, ...]]:
    return tensor.dtype.name, tensor.shape


# Zeros and ones are the content of many tensors: of those that are equal, first those go together whose names are.
_LIKENESS: tuple[Callable[[str], object], ...] = (
    lambda name: name.partition(".")[2],
    lambda name: (*_NUMBER.findall(name), *name.split(".")[-2:]),
    lambda name: (*_NUMBER.findall(name), name.rpartition(".")[2]),
    lambda _: None,
)


def _by_content(
    first: StoredModel, second: StoredModel, old: Sequence[StoredTensor], new: Sequence[StoredTensor]
) -> Mapping[str, str]:
    """Tensors of one dtype, shape and content that each side has under a name of its own."""
    digested = _Digested(first, second, old, new)
    found: dict[str, str] = {}
    for likeness in _LIKENESS:
        found |= digested.equal(likeness, found.keys(), set(found.values()))
    return {tensor.name: found[tensor.name] for tensor in old if tensor.name in found}


class _Digested:
    """Tensors of two models with what finds those that may be equal."""

    def __init__(
        self, first: StoredModel, second: StoredModel, old: Sequence[StoredTensor], new: Sequence[StoredTensor]
    ) -> None:
        from entrenar_core.measuring.differences import digest

        self.models = (first, second)
        self.old = [(tensor, (_kind(tensor), digest(first, tensor))) for tensor in old]
        self.new = [(tensor, (_kind(tensor), digest(second, tensor))) for tensor in new]

    def equal(
        self, likeness: Callable[[str], object], found: Collection[str], taken: Collection[str]
    ) -> Mapping[str, str]:
        """Those of one content, but for what was found and taken before, whose names are alike."""
        candidates: defaultdict[object, list[StoredTensor]] = defaultdict(list)
        for other, content in self.new:
            if other.name not in taken:
                candidates[content, likeness(other.name)].append(other)
        equal = {}
        for tensor, content in self.old:
            if tensor.name not in found:
                now = self._taken(tensor, candidates[content, likeness(tensor.name)])
                if now is not None:
                    equal[tensor.name] = now.name
        return equal

    def _taken(self, tensor: StoredTensor, candidates: list[StoredTensor]) -> StoredTensor | None:
        from entrenar_core.measuring.differences import same_bytes

        first, second = self.models
        found = next((other for other in candidates if same_bytes(first, tensor, second, other)), None)
        if found is not None:
            candidates.remove(found)
        return found


def _by_pattern(renamed: Mapping[str, str]) -> Iterator[Renaming]:
    """Those that were renamed alike together; one alone has its whole names."""
    alike: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name, now in renamed.items():
        alike[_pattern(name, now)][name] = now
    for (old, new), names in alike.items():
        ((name, now), *others) = names.items()
        yield Renaming(old if others else name, new if others else now, names, "content")


def _pattern(old: str, new: str) -> tuple[str, str]:
    """Two names with `*` for the end that they share, and for numbers before it if both have the same."""
    a, b = old.split("."), new.split(".")
    shared = sum(1 for _ in takewhile(lambda parts: parts[0] == parts[1], zip(reversed(a), reversed(b), strict=False)))
    heads = [".".join(parts[: len(parts) - shared]) for parts in (a, b)]
    numbers = [_NUMBER.findall(head) for head in heads]
    if numbers[0] == numbers[1]:
        heads = [_NUMBER.sub("*", head) for head in heads]
    end = ["*"] if shared else []
    before, after = (".".join([*([head] if head else []), *end]) for head in heads)
    return before, after
