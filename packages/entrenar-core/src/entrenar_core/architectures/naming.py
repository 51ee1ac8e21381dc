"""The numbers in the names of tensors, and the modules that the names make: for any model, known or not."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_DEPTH = 64
"""What a name has beyond so many dots is its last part: strangers may write any number."""

_MAX_DIGITS = 9

Numbered = Mapping[str, Mapping[tuple[int, ...], str]]


def numbered(names: Iterable[str]) -> Numbered:
    """Names by their pattern, `*` for every number, and by these numbers.

    `model.layers.3.mlp.up_proj.weight` lies under `model.layers.*.mlp.up_proj.weight` and `(3,)`.
    """
    found: dict[str, dict[tuple[int, ...], str]] = {}
    for name in names:
        parts, numbers = name.split("."), []
        for at, part in enumerate(parts):
            if part.isdecimal() and _is_number(part):
                numbers.append(int(part))
                parts[at] = "*"
        # A name with a star of its own is like no other.
        pattern, key = (".".join(parts), tuple(numbers)) if "*" not in name else (f"\\{name}", ())
        found.setdefault(pattern, {})[key] = name
    return found


def _is_number(part: str) -> bool:
    """Not 007, so that every name comes back from its pattern and its numbers."""
    return part.isascii() and part.isdecimal() and len(part) <= _MAX_DIGITS and (part == "0" or part[0] != "0")


def layers_in(names: Numbered) -> int | None:
    """How many layers a model of no known layout has: the most modules that are numbered and have a tensor in common,
    not counting what is numbered inside of them. None where nothing is repeated, or most numbers are left out, as they
    are where layers of many kinds take turns.
    """
    most = 1
    for same in names.values():
        numbers = {each[0] for each in same if each}
        if len(numbers) > most and max(numbers) - min(numbers) + 1 < 2 * len(numbers):
            most = len(numbers)
    return most if most > 1 else None


def experts_in(names: Numbered) -> tuple[tuple[str, ...], int]:
    """The weights of routed experts of a model of no known layout, and how many experts a layer has."""
    found: list[str] = []
    most = 0
    for pattern, same in names.items():
        parts = pattern.split(".")
        at = next((at for at, part in enumerate(parts) if part == "*" and parts[at - 1] == "experts" and at), None)
        if at is not None:
            place = parts[:at].count("*")
            found += same.values()
            most = max(most, 1 + max(numbers[place] for numbers in same))
    return tuple(found), most


@dataclass(frozen=True, slots=True)
class Module:
    """A node of the tree of names. `path` leads to it, such as `model.layers.0`; the root has none.

    `tensors` are the names that end right below it, `children` the modules by the next part of their path, numbers in
    their order and everything else as it came, `indices` the numbers among these parts.
    """

    path: str
    tensors: tuple[str, ...]
    children: Mapping[str, "Module"]
    indices: tuple[int, ...]


@dataclass(slots=True)
class _Growing:
    tensors: list[str] = field(default_factory=list)
    children: dict[str, "_Growing"] = field(default_factory=dict)


def grouped(names: Iterable[str]) -> Module:
    """The modules and layers of any model, from the names of its tensors alone; of GGUF files too (`blk.0.attn_q`)."""
    root = _Growing()
    for name in names:
        node = root
        for part in name.split(".", MAX_DEPTH)[:-1]:
            inside = node.children.get(part)
            if inside is None:
                inside = node.children[part] = _Growing()
            node = inside
        node.tensors.append(name)
    return _grown(None, root)


def _grown(path: str | None, node: _Growing) -> Module:
    indices = sorted(int(part) for part in node.children if _is_number(part))
    parts = dict.fromkeys([*map(str, indices), *node.children])
    return Module(
        path or "",
        tuple(node.tensors),
        {part: _grown(part if path is None else f"{path}.{part}", node.children[part]) for part in parts},
        tuple(indices),
    )
