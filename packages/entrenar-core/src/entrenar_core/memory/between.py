"""The moments of layers that were left out of a trace: on a straight line between those of the layers around them.

Of a deep model only places near the first and the last layer are told (depth.py), which are the largest of one device.
Where layers are gathered it is those between that have most, with a neighbour on both sides.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from entrenar_core.memory.estimate import Moment


def filled(moments: Sequence[Moment]) -> tuple[Moment, ...]:
    """The moments, and between two of the same pass those of the layers that lie between theirs."""
    found = [moment for one, other in pairwise(moments) for moment in (one, *_between(one, other))]
    return (*found, *moments[-1:])


def _between(one: Moment, other: Moment) -> Iterator[Moment]:
    if (one.phase, one.model) != (other.phase, other.model) or one.layer is None or other.layer is None:
        return
    distance, direction = abs(other.layer - one.layer), 1 if other.layer > one.layer else -1
    for step in range(1, distance):
        keys = dict.fromkeys((*one.held, *other.held))
        held = {
            key: (one.held.get(key, 0) * (distance - step) + other.held.get(key, 0) * step) // distance for key in keys
        }
        yield Moment(one.phase, one.layer + direction * step, held, one.model)
