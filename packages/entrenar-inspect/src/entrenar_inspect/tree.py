"""The modules of a model as a tree, made of the names of its tensors, with layers that are alike taken together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from entrenar_core.formats.tensors import StoredTensor

MAX_DEPTH = 64
"""What a name has beyond so many dots is its last part: strangers may write any number."""
_MAX_DIGITS = 9
"""More of them number nothing, and are a name: Python itself refuses to read thousands."""


@dataclass(slots=True)
class Module:
    """A node: what lies under a name. `tensor` is there where the name is that of a tensor itself."""

    name: str
    inside: dict[str, "Module"] = field(default_factory=dict)
    tensor: StoredTensor | None = None

    def tensors(self) -> Iterator[StoredTensor]:
        """All that lies under it."""
        if self.tensor is not None:
            yield self.tensor
        for module in self.inside.values():
            yield from module.tensors()

    @property
    def is_list(self) -> bool:
        """Whether what lies in it is numbered, as layers and experts are."""
        return bool(self.inside) and all(name.isdecimal() and len(name) <= _MAX_DIGITS for name in self.inside)

    @property
    def has_lists(self) -> bool:
        return self.is_list or any(module.has_lists for module in self.inside.values())


@dataclass(frozen=True, slots=True)
class Group:
    """Modules of one list that are alike, or a single one: `name` reads `layers.0–5.mlp`."""

    name: str
    copies: int
    module: Module


_Contents = Callable[[Module], object]


def tree_of(tensors: Mapping[str, StoredTensor]) -> Module:
    """The tree over all names, its lists in the order of their numbers."""
    root = Module("")
    for name, tensor in tensors.items():
        node = root
        for part in name.split(".", MAX_DEPTH):
            path = f"{node.name}.{part}" if node is not root else part
            node = node.inside.setdefault(part, Module(path))
        node.tensor = tensor
    _sort(root)
    return root


def _sort(root: Module) -> None:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.is_list:
            node.inside = dict(sorted(node.inside.items(), key=lambda item: (len(item[0]), item[0])))
        waiting += node.inside.values()


def groups(
    root: Module, depth: int, *, alike: bool = True, weights: Mapping[str, int] = MappingProxyType({})
) -> list[Group]:
    """The modules to show. At depth 1 these are the lists of layers and what stands beside them; each further level
    opens what the one before showed. Modules of a list that are `alike` are taken together. A module that is opened and
    is a tensor itself has a group of that tensor alone, so that every tensor is in one group.

    Args:
        weights: how many each tensor counts for, by its name: where this differs, modules are not alike.
    """
    contents = partial(_contents, weights) if alike else None
    return [group for start in _beside_lists(root, contents) for group in _opened(start, depth, contents)]


def _beside_lists(node: Module, contents: _Contents | None) -> list[Group]:
    whole = Group(node.name, 1, node)
    if not node.has_lists and node.name:
        return [whole]
    if node.is_list:
        return [*_own_tensor(whole), *_listed(whole, contents)]
    beside = (group for module in node.inside.values() for group in _beside_lists(module, contents))
    return [*_own_tensor(whole), *beside]


def _opened(group: Group, depth: int, contents: _Contents | None) -> list[Group]:
    if depth <= 1 or not group.module.inside:
        return [group]
    if group.module.is_list:
        inner = _listed(group, contents)
    else:
        inner = [Group(f"{group.name}.{name}", group.copies, module) for name, module in group.module.inside.items()]
    return [*_own_tensor(group), *(opened for part in inner for opened in _opened(part, depth - 1, contents))]


def _own_tensor(group: Group) -> list[Group]:
    """The tensor that a module is itself besides those in it, as `q_proj.weight` is beside `q_proj.weight.absmax`."""
    module = group.module
    return [] if module.tensor is None else [Group(group.name, group.copies, Module(module.name, tensor=module.tensor))]


def _listed(group: Group, contents: _Contents | None) -> list[Group]:
    """The modules of a list, those next to each other that hold the same taken together."""
    runs: list[list[tuple[str, Module]]] = []
    before: object = None
    for number, module in group.module.inside.items():
        now = None if contents is None else contents(module)
        if runs and now is not None and now == before and int(number) == int(runs[-1][-1][0]) + 1:
            runs[-1].append((number, module))
        else:
            runs.append([(number, module)])
        before = now
    # Only what lies in the root is called as its part is: a name may start with a dot.
    return [
        Group(
            _span(run) if run[0][0] == run[0][1].name else f"{group.name}.{_span(run)}",
            group.copies * len(run),
            run[0][1],
        )
        for run in runs
    ]


def _span(run: Sequence[tuple[str, Module]]) -> str:
    return run[0][0] if len(run) == 1 else f"{run[0][0]}–{run[-1][0]}"


def _contents(weights: Mapping[str, int], module: Module) -> tuple[object, ...]:
    """What makes two modules alike: the names inside, with their dtypes and shapes, and what they count for."""
    cut = len(module.name)
    return tuple(
        (tensor.name[cut:], tensor.dtype.name, tensor.shape, weights.get(tensor.name)) for tensor in module.tensors()
    )
