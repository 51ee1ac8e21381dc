"""The modules of a model as a tree, made of the names of its tensors, with layers that are alike taken together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from entrenar_core.formats.tensors import StoredTensor

MAX_DEPTH = 64
"""What a name has beyond so many dots is its last part: strangers may write any number."""


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
        return bool(self.inside) and all(name.isdecimal() for name in self.inside)

    @property
    def has_lists(self) -> bool:
        return self.is_list or any(module.has_lists for module in self.inside.values())


@dataclass(frozen=True, slots=True)
class Group:
    """Modules of one list that are alike, or a single one: `name` reads `layers.0–5.mlp`."""

    name: str
    copies: int
    module: Module


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


def groups(root: Module, depth: int, *, alike: bool = True) -> list[Group]:
    """The modules to show. At depth 1 these are the lists of layers and what stands beside them; each further level
    opens what the one before showed. Modules of a list that are `alike` are taken together.
    """
    return [group for start in _beside_lists(root, alike) for group in _opened(start, depth, alike)]


def _beside_lists(node: Module, alike: bool) -> list[Group]:
    if not node.has_lists and node.name:
        return [Group(node.name, 1, node)]
    if node.is_list:
        return _listed(Group(node.name, 1, node), alike)
    return [group for module in node.inside.values() for group in _beside_lists(module, alike)]


def _opened(group: Group, depth: int, alike: bool) -> list[Group]:
    if depth <= 1 or not group.module.inside:
        return [group]
    if group.module.is_list:
        inner = _listed(group, alike)
    else:
        inner = [Group(f"{group.name}.{name}", group.copies, module) for name, module in group.module.inside.items()]
    return [opened for part in inner for opened in _opened(part, depth - 1, alike)]


def _listed(group: Group, alike: bool) -> list[Group]:
    """The modules of a list, those next to each other that hold the same taken together."""
    runs: list[list[tuple[str, Module]]] = []
    before: Sequence[object] | None = None
    for number, module in group.module.inside.items():
        now = _contents(module) if alike else None
        if runs and alike and now == before and int(number) == int(runs[-1][-1][0]) + 1:
            runs[-1].append((number, module))
        else:
            runs.append([(number, module)])
        before = now
    return [Group(f"{group.name}.{_span(run)}".lstrip("."), group.copies * len(run), run[0][1]) for run in runs]


def _span(run: Sequence[tuple[str, Module]]) -> str:
    return run[0][0] if len(run) == 1 else f"{run[0][0]}–{run[-1][0]}"


def _contents(module: Module) -> tuple[object, ...]:
    """What makes two modules alike: the names inside, with their dtypes and shapes."""
    cut = len(module.name)
    return tuple((tensor.name[cut:], tensor.dtype.name, tensor.shape) for tensor in module.tensors())
