"""What a verification found: figures, limits, and in which of them the file fails."""

import math
from dataclasses import dataclass

from entrenar_core.units import percent, perplexity
from entrenar_core.verification.comparing import TOP, Distances
from entrenar_core.verification.limits import MARGIN, Limits

_SHOWN_IDS, _SHOWN_LETTERS = 8, 60
_ERRORS = 2.0
"""How many standard errors of a perplexity are not held against it."""


@dataclass(frozen=True, slots=True)
class TextDifference:
    """A text that llama.cpp cuts in another way; `special`: with the tokens that a text begins and ends with."""

    text: str
    special: bool
    original: tuple[int, ...]
    gguf: tuple[int, ...]

    def __str__(self) -> str:
        text = repr(self.text) if len(self.text) <= _SHOWN_LETTERS else f"{self.text[:_SHOWN_LETTERS]!r}…"
        at = next((i for i, (a, b) in enumerate(zip(self.original, self.gguf, strict=False)) if a != b), None)
        at = min(len(self.original), len(self.gguf)) if at is None else at
        first = max(0, at - 2)
        ours, theirs = (_ids(ids[first : first + _SHOWN_IDS]) for ids in (self.original, self.gguf))
        where = f" from token {first + 1} on" if first else ""
        return f"{text} is {ours} to its tokenizer{where}, and {theirs} to llama.cpp"


@dataclass(frozen=True, slots=True)
class TextAgreement:
    """On how many texts both tokenizers agree, id by id, with and without special tokens."""

    texts: int
    agreeing: int
    first_difference: TextDifference | None = None


@dataclass(frozen=True, slots=True)
class Predictions:
    """Next tokens, as both models predict them, over the same positions of a passage.

    `told` is how many of the likeliest tokens llama.cpp was asked for at each, which have `told_share` of the GGUF's
    probability; `is_exact`: they are all, so that KL is exact, and else a lower bound. The perplexities are exact.
    `noise` is how far the original is from itself with noise of the type's size, where that was needed to judge.
    """

    positions: int
    told: int
    told_share: float
    is_exact: bool
    distances: Distances
    original_perplexity: float
    perplexity: float
    noise: Distances | None = None

    @property
    def ratio(self) -> float:
        """The GGUF's perplexity as a share of the original's."""
        return self.perplexity / self.original_perplexity


@dataclass(frozen=True, slots=True)
class VectorAgreement:
    """Cosines between the vectors of both models, of texts; of tokens, where the file does not pool them (`pooling` is
    None).

    `noise_min` is the smallest between the original and itself with noise, where that was needed to judge.
    """

    texts: int
    pooling: str | None
    cosine_min: float
    cosine_mean: float
    noise_min: float | None = None


@dataclass(frozen=True, slots=True)
class ClassAgreement:
    """The classes of texts, as both models tell them: KL(original ‖ model) of the probabilities, in nats, and the share
    of texts that both give the same class. Of more classes than the model is wide llama.cpp's server tells the first,
    `told` of `classes`: then both are compared on these alone.

    `noise_kl` is what noise of the type's size costs the original, where that was needed to judge.
    """

    texts: int
    classes: int
    told: int
    kl_mean: float
    kl_max: float
    agreement: float
    noise_kl: float | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """A GGUF beside the model that it was made of: `predictions` of a language model, `classes` of a classifier, else
    `vectors`.
    """

    mix: str
    limits: Limits
    texts: TextAgreement
    predictions: Predictions | None
    vectors: VectorAgreement | None
    classes: ClassAgreement | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is wrong with the file, in whole clauses; one text that is cut in another way is one too many."""
        found = []
        if self.texts.first_difference is not None:
            other = self.texts.texts - self.texts.agreeing
            found.append(f"llama.cpp cuts {other} of {self.texts.texts} texts otherwise: {self.texts.first_difference}")
        if self.predictions is not None:
            found += prediction_reasons(self.predictions, self.limits)
        if self.vectors is not None:
            found += vector_reasons(self.vectors, self.limits)
        if self.classes is not None:
            found += class_reasons(self.classes, self.limits)
        return tuple(found)

    @property
    def passed(self) -> bool:
        """Whether nothing is beyond a limit."""
        return not self.reasons


def prediction_reasons(found: Predictions, limits: Limits) -> list[str]:
    """What is beyond a limit: that of the type, or `MARGIN` times what noise of its size costs, if that is more."""
    far, noise = found.distances, found.noise
    kl_limit = max(limits.kl, MARGIN * noise.kl_mean if noise else 0.0)
    loss_limit = max(math.log1p(limits.perplexity), MARGIN * (abs(noise.loss) + noise.loss_error) if noise else 0.0)
    reasons = []
    if far.kl_mean > kl_limit:
        reasons.append(
            f"its predictions differ by a KL divergence of {far.kl_mean:.3g} nats on average, beyond {kl_limit:.3g}"
        )
    if abs(far.loss) - _ERRORS * far.loss_error > loss_limit:
        reasons.append(
            f"its perplexity is {perplexity(found.perplexity)}, that of the original "
            f"{perplexity(found.original_perplexity)}: they differ by more than {percent(math.expm1(loss_limit))}"
        )
    if limits.difference is not None:
        limit = max(limits.difference, MARGIN * noise.difference_max if noise else 0.0)
        if far.difference_max > limit:
            reasons.append(
                f"a log-probability of the tokens that follow, or of the {TOP} likeliest, differs by "
                f"{far.difference_max:.3g}, beyond {limit:.3g}"
            )
    return reasons


def class_reasons(found: ClassAgreement, limits: Limits) -> list[str]:
    """The same of classes."""
    limit = max(limits.kl, MARGIN * (found.noise_kl or 0.0))
    if found.kl_mean <= limit:
        return []
    return [
        f"the probabilities of its classes differ by a KL divergence of {found.kl_mean:.3g} nats on average, beyond "
        f"{limit:.3g}"
    ]


def vector_reasons(found: VectorAgreement, limits: Limits) -> list[str]:
    """The same of vectors."""
    limit = min(limits.cosine, 1.0 if found.noise_min is None else 1 - MARGIN * (1 - found.noise_min))
    if found.cosine_min >= limit:
        return []
    return [f"a vector has a cosine of {found.cosine_min:.5f} with that of the original, below {limit:.5f}"]


def _ids(ids: tuple[int, ...]) -> str:
    return " ".join(map(str, ids)) or "nothing"
