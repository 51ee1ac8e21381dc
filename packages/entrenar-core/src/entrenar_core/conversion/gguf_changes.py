"""How llama.cpp's files lay out values that transformers has in another order, and how each change is undone.

Source: convert_hf_to_gguf.py of https://github.com/ggml-org/llama.cpp, which makes the changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from entrenar_core.conversion.content import Change
from entrenar_core.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.floating]
    Function = Callable[[Values, float], Values]


@dataclass(frozen=True, slots=True)
class Layout:
    """A change and what undoes it: functions of the values and of a number, the rows of a head or a scale. `turns`:
    rows become columns; `of_heads`: the number is that of a head's rows.
    """

    write: "Function"
    undo: "Function"
    turns: bool = False
    of_heads: bool = False


def _neighbours(values: "Values", head: float) -> "Values":
    """From all first halves, then all second ones, to pairs of rows next to each other, within each head."""
    heads, half = len(values) // int(head), int(head) // 2
    return values.reshape(heads, 2, half, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _halves_apart(values: "Values", head: float) -> "Values":
    """From pairs of rows next to each other to all first ones, then all second ones, within each head."""
    heads, half = len(values) // int(head), int(head) // 2
    return values.reshape(heads, half, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def _transposed(values: "Values", _: float) -> "Values":
    return values.T


LAYOUTS: Mapping[str, Layout] = {
    "pairs": Layout(_neighbours, _halves_apart, of_heads=True),
    "transposed": Layout(_transposed, _transposed, turns=True),
    "plus_one": Layout(lambda values, _: values + 1, lambda values, _: values - 1),
    "scaled": Layout(lambda values, scale: values * scale, lambda values, scale: values / scale),
    "plus_one_scaled": Layout(lambda values, scale: (values + 1) * scale, lambda values, scale: values / scale - 1),
}
"""The changes by the names that gguf_families.toml has for them."""
_SCALES = ("scaled", "plus_one_scaled")


@dataclass(frozen=True, slots=True)
class Changed:
    """What is done to a tensor of a model: a change of `LAYOUTS`, with the heads or the scale that it goes by."""

    layout: str | None = None
    number: float = 0.0

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Of a tensor that has another before."""
        return stored[::-1] if self.layout is not None and LAYOUTS[self.layout].turns else stored

    def written(self, name: str, shape: tuple[int, ...]) -> Change | None:
        """What is done to the values of the tensor `name` for a GGUF, if anything.

        Raises:
            ModelError: its rows are no whole heads.
        """
        return self._on(name, shape, lambda layout: layout.write)

    def undone(self, name: str, shape: tuple[int, ...]) -> Change | None:
        """What is done to the values of a GGUF's tensor, which will be called `name`, if anything.

        Raises:
            ModelError: its rows are no whole heads.
        """
        return self._on(name, shape, lambda layout: layout.undo)

    def _on(self, name: str, shape: tuple[int, ...], chosen: "Callable[[Layout], Function]") -> Change | None:
        if self.layout is None or (self.layout == "scaled" and self.number == 1):
            return None
        layout, number = LAYOUTS[self.layout], self.number
        if layout.of_heads and not (number and shape and shape[0] % (2 * int(number)) == 0):
            heads = f"{int(number):,} heads" if number else "no number of heads"
            raise ModelError(
                f"the shape {list(shape)} of {name} cannot be cut into heads of pairs: its metadata says {heads}",
                "convert the original model instead",
            )
        apply, together = chosen(layout), None if layout.turns else 1
        if layout.of_heads:
            number = together = max(shape[0] // int(number), 1)
        return Change(lambda values: apply(values, number), self.shape(shape), together)


UNCHANGED = Changed()


def change_of(
    inner: str, changes: "tuple[tuple[str, str, str], ...]", heads: Callable[[str], int | None], scale: float
) -> Changed:
    """The change of the tensor that a family's body calls `inner`: the first of `changes` whose pattern fits.

    Args:
        heads: how many heads a size such as `num_kv_heads` is.
        scale: what queries are multiplied by.
    """
    for pattern, layout, size in changes:
        if fnmatchcase(inner, pattern):
            number = scale if layout in _SCALES else heads(size) or 0 if size else 0
            return Changed(layout, number)
    return UNCHANGED
