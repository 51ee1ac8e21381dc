"""How good a sentence encoder is on the evaluation rows, alone and beside its teacher.

Both read the texts with their own tokenizers. With labels, each text is to find those of its label among all others;
without, the first half of each text is to find its second half among those of all texts.

Shapes: N texts, H student's width, K teacher's width.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from entrenar_core.data.chance import drawer
from entrenar_core.errors import DataError
from entrenar_core.reports import Scores
from entrenar_core.training.sentence_scores import mean_cosine, rank_correlation, retrieval

MOST_ROWS = 5_000
"""Of more evaluation rows, so many are drawn, always the same."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked: `texts` to read, of which the first `whole` are rows; the rest are halves, as many first ones as
    second ones. `labels_N` are of the rows, or of the halves that belong together.
    """

    texts: tuple[str, ...]
    whole: int
    labels_N: Tensor

    @property
    def halved(self) -> bool:
        """Whether halves are looked for, and not rows of the same label."""
        return len(self.texts) > self.whole


def questions_of(texts: Sequence[str], labels: Sequence[int] | None, column: str) -> Questions:
    """What is asked of so many rows. `labels` are classes by number, −1 where a row has none; `column` has them.

    Raises:
        DataError: nothing can be asked.
    """
    chosen = sorted(drawer(0, "sentences").sample(range(len(texts)), min(len(texts), MOST_ROWS)))
    texts = [texts[row] for row in chosen]
    if labels is not None:
        labels = [labels[row] for row in chosen]
        if not any(count > 1 for label, count in Counter(labels).items() if label >= 0):
            raise DataError(
                f"no two evaluation rows have the same label in column `{column}`, so none can find another",
                "hold out more rows, or leave `dataset.label_column` out",
            )
        return Questions(tuple(texts), len(texts), torch.tensor(labels))
    cut = [halves for halves in map(halves_of, texts) if halves is not None]
    if not cut:
        raise DataError(
            "no evaluation text has two halves, so none can find the other", "hold out rows with longer texts"
        )
    first, second = zip(*cut, strict=True)
    same = {text: number for number, text in enumerate(dict.fromkeys(second))}  # equal halves are equally right
    return Questions((*texts, *first, *second), len(texts), torch.tensor([same[text] for text in second]))


def halves_of(text: str) -> tuple[str, str] | None:
    """A text in two, between words or, of a single one, between characters; None where there is nothing to cut."""
    words = text.split()
    if len(words) > 1:
        return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
    word = "".join(words)
    return (word[: len(word) // 2], word[len(word) // 2 :]) if len(word) > 1 else None


def score_sentences(vectors_NH: Tensor, questions: Questions, teacher_NK: Tensor | None = None) -> Scores:
    """Scores of the vectors of all `questions.texts`, beside those of a teacher."""
    labels_N, rows_NH = questions.labels_N, vectors_NH[: questions.whole]
    if questions.halved:
        first_NH, second_NH = vectors_NH[questions.whole :].chunk(2)
        asked, found = len(first_NH), retrieval(first_NH, labels_N, second_NH, labels_N)
    else:
        own_N = ((labels_N.unsqueeze(1) == labels_N).sum(1) > 1).logical_and(labels_N >= 0).nonzero().squeeze(1)
        asked, found = len(own_N), retrieval(rows_NH[own_N], labels_N[own_N], rows_NH, labels_N, own_N)
    cosine = correlation = None
    if teacher_NK is not None:
        taught_NK = teacher_NK[: questions.whole]
        correlation = rank_correlation(rows_NH, taught_NK)
        cosine = mean_cosine(rows_NH, taught_NK) if rows_NH.shape == taught_NK.shape else None
    return Scores(
        examples=questions.whole,
        targets=asked,
        cross_entropy=None,
        accuracy=found[0],
        mean_average_precision=found[1],
        cosine=cosine,
        rank_correlation=correlation,
    )
