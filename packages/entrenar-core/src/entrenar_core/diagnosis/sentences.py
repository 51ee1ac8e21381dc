"""Sentence encoders before training: what their vectors find, and whether they tell texts from each other.

Shapes: N texts that are judged, of which the first are rows, H width.
"""

from collections.abc import Iterator

from torch import Tensor

from entrenar_core.diagnosis.findings import Encoder, Trouble
from entrenar_core.reports import Scores
from entrenar_core.training.sentence_scores import cosine_spread

COLLAPSED = 0.01
"""Standard deviation of the cosines of pairs of rows: below it, all texts are alike to an encoder."""
_FEWEST = 10
"""Rows that it takes to say so."""


def describe(vectors_NH: Tensor, rows: int, scores: Scores, pooling: str) -> Encoder:
    """An encoder by its vectors, the first `rows` of which are of whole rows, and by its scores."""
    assert scores.mean_average_precision is not None, "the scores of a sentence encoder"
    mean, deviation = cosine_spread(vectors_NH[:rows]) or (None, None)
    return Encoder(pooling, vectors_NH.shape[1], scores.mean_average_precision, scores.accuracy, mean, deviation)


def collapse(teacher: Encoder, rows: int) -> Iterator[Trouble]:
    """A teacher whose cosines are all alike: there is next to nothing to learn from it, and hardly in 16 bits."""
    mean, deviation = teacher.mean_cosine, teacher.cosine_deviation
    if rows < _FEWEST or mean is None or deviation is None or deviation >= COLLAPSED:
        return
    yield Trouble(
        "collapsed teacher",
        f"its cosines of pairs of rows are {mean:.4f} ± {deviation:.2g}: all texts look alike to it",
        "take a model that was trained as a sentence encoder, or another `teacher.pooling`, and look at the rows for "
        "texts that are all the same",
    )
