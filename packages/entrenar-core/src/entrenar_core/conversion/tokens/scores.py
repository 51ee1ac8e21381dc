"""Whether merges can be told by a score for each token, as llama.cpp's SentencePiece does, and which scores.

The score of a token is minus the place of its first merge. llama.cpp then merges the same neighbours if every cut of a
token into two others that can come about is a merge, and no token's merges begin before and end after another's.
Where they do, as among runs of spaces with equal scores, both ways of merging are tried on texts.
"""

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise

from entrenar_core.conversion.tokens.spaces import SPACE
from entrenar_core.conversion.tokens.trial_texts import TRIAL_TEXTS

Merge = tuple[str, str]
_LONGEST_RUN = 40


def scores_of(merges: Sequence[Merge]) -> Mapping[str, float]:
    """The score of each token that is merged: minus the place of the first merge that makes it."""
    scores: dict[str, float] = {}
    for place, (left, right) in enumerate(merges):
        scores.setdefault(left + right, -float(place))
    return scores


def disagreement(merges: Sequence[Merge], parts: Collection[str]) -> str | None:
    """Why scores would merge otherwise than these merges; None if they do not.

    Args:
        merges: the first is the first to be done.
        parts: the tokens that llama.cpp would make by merging, if it could.
    """
    listed = set(merges)
    for left, right in _cuts(parts):
        if (left, right) not in listed:
            return f"{left!r} and {right!r} are not merged, though {left + right!r} is a token"
    if not _interleaved(merges):
        return None
    places = {merge: -place for place, merge in enumerate(merges)}
    scores = scores_of(merges)
    for text in _texts():
        if merged(text, places.get) != merged(text, lambda merge: scores.get(merge[0] + merge[1])):
            return f"the merges of its tokens overlap, so that {text[:40].replace(SPACE, ' ')!r} gets other tokens"
    return None


def merged(text: str, score: Callable[[Merge], float | None]) -> list[str]:
    """The tokens of a text: of all neighbours with a score, those with the highest are merged first, from the left."""
    parts, before, after = list(text), [*range(-1, len(text) - 1)], [*range(1, len(text)), -1]
    queue: list[tuple[float, int, Merge]] = []

    def offer(left: int, right: int) -> None:
        if min(left, right) >= 0 and (found := score((parts[left], parts[right]))) is not None:
            heapq.heappush(queue, (-found, left, (parts[left], parts[right])))

    for place in range(len(text) - 1):
        offer(place, place + 1)
    while queue:
        _, left, pair = heapq.heappop(queue)
        right = after[left]
        if right < 0 or (parts[left], parts[right]) != pair:
            continue
        parts[left], parts[right], after[left] = "".join(pair), "", after[right]
        if after[right] >= 0:
            before[after[right]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [part for part in parts if part]


def _cuts(parts: Collection[str]) -> Iterator[Merge]:
    """Every cut of a token into two that can come about themselves: letters always do, whether tokens or not."""
    made = set("".join(parts))
    for token in sorted(parts, key=len):
        places = range(1, len(token))
        cuts = [(token[:at], token[at:]) for at in places if token[:at] in made and token[at:] in made]
        if cuts:
            made.add(token)
        yield from cuts


def _interleaved(merges: Sequence[Merge]) -> bool:
    changes = [left + right for left, right in merges]
    starts = [after for before, after in pairwise(("", *changes)) if before != after]
    return len(starts) != len(set(starts))


def _texts() -> Iterator[str]:
    yield from (text.replace(" ", SPACE) for text in TRIAL_TEXTS)
    yield from (f"a{SPACE * count}b" for count in range(2, _LONGEST_RUN))
    yield from (f"a{sign * count}b" for sign in "\n\t" for count in range(2, _LONGEST_RUN, 5))
