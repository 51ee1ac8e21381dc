"""What the classes are, which rows are held out, and which rows keep their labels. Plain Python: no tensors here.

A label of a row is a class index, or −1 where the row has none.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from entrenar_core.data.chance import drawer
from entrenar_core.errors import DataError

UNLABELLED = -1
IGNORED = -100
"""What stands in tensors for a label that is not there, as in torch and transformers."""
Value = str | int | bool
_GENERIC = re.compile(r"(?:LABEL_)?\d+")


def clean(value: object, column: str, declared: Sequence[str] | None = None) -> Value | None:
    """A value of the label column as a class, or None for no label: null, an empty text, or −1 of declared classes.

    Readers make fractions of whole numbers where some rows have none, so 1.0 is 1.

    Raises:
        DataError: it cannot be a class.
    """
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, Value):
        raise DataError(
            f"`{column}` holds {_shown(value)}, which is no class",
            "classes are texts, whole numbers or true and false; scores and lists are not classes",
        )
    if declared is None or isinstance(value, str):
        return value
    return declared[value] if value >= 0 else None


class LabelMap:
    """Turns values of the label column into indices of `names`."""

    def __init__(self, names: Sequence[str], column: str, *, of_head: bool) -> None:
        self.names = tuple(names)
        self._column = column
        self._of_head = of_head
        self._index = {name: index for index, name in enumerate(self.names)}
        self._generic = all(_GENERIC.fullmatch(name) for name in self.names)

    def index(self, value: Value | None, number: int | None = None) -> int:
        """The index of a class; `number` is the one that the data set declares for a named class.

        Names are matched first. A whole number that is no name is an index of the head; so is the number of a named
        class where the head was saved without real names (`LABEL_0`, …).

        Raises:
            DataError: the model's head, or the training rows, do not have this class.
        """
        if value is None:
            return UNLABELLED
        for spelling in _spellings(value):
            if spelling in self._index:
                return self._index[spelling]
        if self._of_head:
            position = number if self._generic and number is not None else value
            if isinstance(position, int) and 0 <= position < len(self.names):
                return int(position)
        raise self._unknown(value)

    def _unknown(self, value: Value) -> DataError:
        listed = ", ".join(self.names[:20]) + (", …" if len(self.names) > 20 else "")
        if self._of_head:
            return DataError(
                f"label {_shown(value)} in column `{self._column}` is unknown to the model's head, which has {listed}",
                "rename such labels, or leave them empty: a row without a label is taught by the teacher alone",
            )
        return DataError(
            f"label {_shown(value)} in column `{self._column}` is in the evaluation rows and in no training row",
            f"the training rows have {listed}",
        )


def classes(values: Iterable[Value | None], declared: Sequence[str] | None, column: str) -> tuple[str, ...]:
    """The names of the classes: as declared by the data set, or those found, numbers by size and texts by name.

    Raises:
        DataError: there are fewer than two, or they mix texts and numbers.
    """
    found = {value for value in values if value is not None}
    if len(found) < 2:
        what = f"only the label {_shown(found.pop())}" if found else "no label at all"
        raise DataError(
            f"the training rows have {what} in column `{column}`", "a classifier needs at least two classes"
        )
    if declared is not None:
        return tuple(declared)
    if len({isinstance(value, str) for value in found}) > 1:
        raise DataError(f"column `{column}` mixes texts and numbers", "write every label the same way")
    return tuple(_spellings(value)[0] for value in sorted(found, key=lambda value: value))


def declared_classes(features: Any, column: str | None) -> tuple[str, ...] | None:
    """The names of the classes, or of the tags in a list, where the data set declares them."""
    kind = None if column is None else features[column]
    names = getattr(getattr(kind, "feature", kind), "names", None)
    return tuple(names) if names else None


def class_index(mapping: LabelMap, value: Value | None, declared: Sequence[str] | None) -> int:
    """The index of a class of the data, by name, or by number where the data set declares one."""
    if declared is not None and isinstance(value, str) and value in declared:
        return mapping.index(value, list(declared).index(value))
    return mapping.index(value)


def _spellings(value: Value) -> tuple[str, ...]:
    return (str(value).lower(), str(value)) if isinstance(value, bool) else (str(value),)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def hold_out(labels: Sequence[int] | None, num_rows: int, count: int, seed: int) -> list[int]:
    """Positions of `count` rows, ascending, drawn by the seed.

    With labels, only labelled rows are drawn, every class in its share (largest remainders), and the last row of a
    class is never taken: training needs it. So there may be fewer than `count`.
    """
    draw = drawer(seed, "held out")
    if labels is None:
        return sorted(draw.sample(range(num_rows), min(count, num_rows)))
    members: dict[int, list[int]] = defaultdict(list)
    for position, label in enumerate(labels):
        if label != UNLABELLED:
            members[label].append(position)
    total = sum(map(len, members.values()))
    exact = {label: count * len(rows) / total for label, rows in sorted(members.items())} if total else {}
    quota = Counter({label: int(share) for label, share in exact.items()})
    missing = min(count, total) - quota.total()
    for label in sorted(exact, key=lambda label: quota[label] - exact[label])[:missing]:
        quota[label] += 1
    drawn = (draw.sample(members[label], min(quota[label], len(members[label]) - 1)) for label in exact)
    return sorted(position for rows in drawn for position in rows)


def keep_labels(labels: Sequence[int], count: int, seed: int, column: str) -> list[int]:
    """The labels with all but `count` of them dropped. One row of every class comes first, if `count` allows it.

    Raises:
        DataError: fewer than `count` rows have a label.
    """
    order = [position for position, label in enumerate(labels) if label != UNLABELLED]
    if count > len(order):
        raise DataError(
            f"`dataset.labelled_rows` is {count}, and {len(order)} training rows have a label in column `{column}`",
            "lower it, or leave it out to keep all labels",
        )
    drawer(seed, "labelled").shuffle(order)
    first = {labels[position]: position for position in reversed(order)}.values()
    ahead = set(first) if len(first) <= count else set()
    order.sort(key=lambda position: position not in ahead)  # stable: the rest stays as shuffled
    kept = set(order[:count])
    return [label if position in kept else UNLABELLED for position, label in enumerate(labels)]
