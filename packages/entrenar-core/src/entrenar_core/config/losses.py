"""What a student learns from a teacher: any number of losses, or the short spellings of the usual ones.

Each class with a `name` is a kind of entry of `distillation.losses`; desugaring.py turns the short spellings into
such entries, so that everything behind the configuration knows entries alone.
"""

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from entrenar_core.config.schedules import ScheduledTemperature, ScheduledWeight
from entrenar_core.config.types import Count, NonNegative, Probability, Section, Share, Switch, Weight

DivergenceName = Literal[
    "forward_kl",
    "reverse_kl",
    "jeffreys",
    "jsd",
    "skew_forward_kl",
    "skew_reverse_kl",
    "bild",
    "total_variation",
    "cross_entropy_hard",
]  # the names of losses.DIVERGENCES; a test compares them
MAPPINGS = ("uniform", "first", "last", "final", "cka")
Pool = Literal["first", "last", "mean", "tokens"]
RowPool = Literal["first", "last", "mean"]


def _pairs(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(type(index) is int and index >= 0 for index in pair)
        for pair in value
    )


def _mapping(value: object) -> object:
    """One message for both forms, where a union would report the failure of each."""
    if not (value in MAPPINGS or (value and _pairs(value))):
        raise ValueError("should be uniform, first, last, final, cka, or pairs of layers such as [[0, 3], [1, 7]]")
    return value


def _mapping_or_vectors(value: object) -> object:
    if value != "vectors" and not (value in MAPPINGS or (value and _pairs(value))):
        raise ValueError("should be vectors, uniform, first, last, final, cka, or pairs of layers such as [[0, 3]]")
    return value


def _heads(value: object) -> object:
    if not (value in ("auto", "grouped") or (value and _pairs(value))):
        raise ValueError("should be auto, grouped, or pairs of heads such as [[0, 1], [1, 3]]")
    return value


# `vectors`, those of sentences, are in place of layers, and only what is below them is a mapping of layers
LayersOrVectors = Literal["uniform", "first", "last", "final", "cka", "vectors"] | tuple[tuple[int, int], ...]
Layers = Annotated[LayersOrVectors, BeforeValidator(_mapping)]
Heads = Annotated[Literal["auto", "grouped"] | tuple[tuple[int, int], ...], BeforeValidator(_heads)]
HeadWeights = Literal["uniform", "entropy", "variance", "learned"]
Projection = Literal["none", "linear", "mlp"]
GroupSize = Annotated[int, Field(strict=True, ge=2, lt=2**31, title="a whole number, at least 2")]
LAYERS = "uniform, first, last, final, cka, or pairs of layers"


class Loss(Section):
    """What every entry has."""

    weight: ScheduledWeight = Field(
        1.0, title="a number from 0 to 1,000,000, or a schedule", description="What the loss is multiplied by."
    )


class SoftLoss(Loss):
    """A divergence of the student's distribution from the teacher's, times T² (T, where its `power` is 1)."""

    name: DivergenceName = Field(description="The loss.")

    temperature: ScheduledTemperature | None = Field(
        None,
        title="a number from 0.01 to 1000, or a schedule",
        description="Softens both distributions; `distillation.temperature` if not given.",
    )
    entropy_threshold: NonNegative | None = Field(
        None, description="Only rows or positions where the teacher's entropy at T is above this, in nats."
    )


class SelectiveLoss(SoftLoss):
    """A divergence that can look at the likeliest tokens alone."""

    top_k: Count | None = Field(None, description="Only so many tokens or classes, those the teacher finds likeliest.")
    top_k_tail: Switch = Field(
        True, description="Count what `top_k` leaves out as one token more; false: renormalise over the `top_k`."
    )


class PlainLoss(SelectiveLoss):
    """A divergence without parameters of its own."""

    name: Literal["forward_kl", "reverse_kl", "total_variation"] = Field(description="The loss.")


class HardLoss(SoftLoss):
    """The cross-entropy with the teacher's likeliest token or class."""

    name: Literal["cross_entropy_hard"] = Field(description="The loss.")


class JeffreysLoss(SelectiveLoss):
    """forward · KL(p ‖ q) + reverse · KL(q ‖ p)."""

    name: Literal["jeffreys"] = Field(description="The loss.")
    forward: Weight = Field(0.5, description="Weight of KL(p ‖ q).")
    reverse: Weight = Field(0.5, description="Weight of KL(q ‖ p).")


class JsdLoss(SelectiveLoss):
    """The generalised Jensen-Shannon divergence."""

    name: Literal["jsd"] = Field(description="The loss.")
    beta: Share = Field(0.5, description="Weight of the teacher.")
    normalised: Switch = Field(False, description="Divide by β (1 − β), so that its limits are the two KLs.")


class SkewLoss(SelectiveLoss):
    """A KL against a mixture of both distributions."""

    name: Literal["skew_forward_kl", "skew_reverse_kl"] = Field(description="The loss.")
    skew: Probability = Field(0.1, description="λ, the part of the distribution itself in the mixture.")


class BildLoss(SoftLoss):
    """Differences between the logits of the likeliest tokens."""

    name: Literal["bild"] = Field(description="The loss.")
    top_k: Annotated[int, Field(strict=True, ge=2, lt=2**31, title="a whole number, at least 2")] = Field(
        8, description="Whose logits are compared with each other: the teacher's and the student's likeliest tokens."
    )


class LabelLoss(Loss):
    """Cross-entropy with the labels, which needs no teacher."""

    name: Literal["cross_entropy"] = Field(description="The loss.")
    label_smoothing: Probability = Field(
        0.0, description="Part of a label that is given to all tokens or classes evenly."
    )


class LayerLoss(Loss):
    """A loss between layers, averaged over the pairs of them."""

    layers: Layers = Field(
        "uniform",
        title="uniform, first, last, final, cka, or pairs of layers",
        description="Which layers are compared: a strategy, or pairs of layers [student, teacher], counted from 0.",
    )


class HiddenLoss(LayerLoss):
    """Hidden states of every token."""

    name: Literal["hidden_mse", "hidden_cosine"] = Field(description="The loss.")
    embeddings: Switch = Field(False, description="Also compare what the first layers read.")
    projection: Projection = Field("linear", description="Learnt, from the student's width to the teacher's.")


class PatientLoss(LayerLoss):
    """Hidden states of length 1, of a row or of every token."""

    name: Literal["patient"] = Field(description="The loss.")
    pool: Pool = Field("first", description="The vector of a row, or every token.")
    projection: Projection = Field("linear", description="Learnt, from the student's width to the teacher's.")


class CkaLoss(LayerLoss):
    """How alike two layers see the rows of a group, whatever their widths."""

    name: Literal["cka"] = Field(description="The loss.")
    pool: Pool = Field("mean", description="The vector of a row, or every token.")
    group_size: GroupSize = Field(8, description="Rows that are compared with each other.")


class AttentionMapLoss(LayerLoss):
    """Where a layer is active."""

    name: Literal["attention_maps"] = Field(description="The loss.")
    power: Annotated[float, Field(strict=True, ge=1, le=16, title="a number from 1 to 16")] = Field(
        2.0, description="The exponent of activations."
    )


class AttentionLoss(LayerLoss):
    """What attention looks at, as distributions or as scores before softmax."""

    name: Literal["attention_kl", "attention_mse"] = Field(description="The loss.")
    heads: Heads = Field(
        "auto", title="auto, grouped, or pairs of heads", description="Which heads are compared, where they differ."
    )
    head_weights: HeadWeights = Field("uniform", description="How heads are weighted against each other.")


class MinilmLoss(LayerLoss):
    """Relations between the queries, keys or values of tokens, whatever the heads."""

    name: Literal["minilm"] = Field(description="The loss.")
    layers: Layers = Field("final", title=LAYERS, description="Which layers are compared.")
    relations: Annotated[tuple[Literal["query", "key", "value"], ...], Field(min_length=1)] = Field(
        ("query", "key", "value"),
        title="a list of query, key and value",
        description="Whose relations, in equal parts.",
    )
    relation_heads: Count | None = Field(
        None, description="Heads that the relations are split into; the most that suit both models, if not given."
    )


class RelationLoss(LayerLoss):
    """How the rows of a group lie to each other."""

    name: Literal["rkd_distance", "rkd_angle", "similarity_preserving", "in_batch_similarity"] = Field(
        description="The loss."
    )
    layers: Annotated[LayersOrVectors, BeforeValidator(_mapping_or_vectors)] = Field(
        "final",
        title=f"{LAYERS}; or vectors",
        description="Which layers are compared, or the vectors of sentences, as in the task `embedding` if not given.",
    )
    pool: RowPool = Field("mean", description="The vector of a row, in layers.")
    group_size: GroupSize = Field(8, description="Rows that are compared with each other.")


class GeometryLoss(RelationLoss):
    """Distances, angles or similarities between the rows of a group."""

    name: Literal["rkd_distance", "rkd_angle", "similarity_preserving"] = Field(description="The loss.")


class SimilarityLoss(RelationLoss):
    """How likely each other row of a group is to be meant, by cosines."""

    name: Literal["in_batch_similarity"] = Field(description="The loss.")
    temperature: Annotated[
        float, Field(strict=True, ge=0.001, le=1000, allow_inf_nan=False, title="a number from 0.001 to 1000")
    ] = Field(0.05, description="How sharply cosines tell rows apart.")


class VectorLoss(Loss):
    """The vectors of sentences."""

    name: Literal["embedding_cosine", "embedding_mse"] = Field(description="The loss.")
    projection: Projection | None = Field(
        None,
        description="Learnt, from the student's width to the teacher's; linear where they differ, if not given.",
    )


class ExitLoss(Loss):
    """Answers of layers inside of the student; made of `distillation.exits`, and no entry of the list."""

    name: Literal["exits"] = "exits"
    layers: tuple[int, ...] | None = None
    learn_from: Literal["final", "teacher", "labels"] = "final"
    divergence: DivergenceName = "forward_kl"


LossEntry = Annotated[
    PlainLoss
    | HardLoss
    | JeffreysLoss
    | JsdLoss
    | SkewLoss
    | BildLoss
    | LabelLoss
    | HiddenLoss
    | PatientLoss
    | CkaLoss
    | AttentionMapLoss
    | AttentionLoss
    | MinilmLoss
    | GeometryLoss
    | SimilarityLoss
    | VectorLoss,
    Field(discriminator="name"),
]

_KINDS: tuple[type[Loss], ...] = get_args(get_args(LossEntry)[0])


def compares_vectors(entry: Loss) -> bool:
    """Whether it is about the vectors of sentences."""
    return isinstance(entry, VectorLoss) or (isinstance(entry, LayerLoss) and entry.layers == "vectors")


def compares_layers(entry: Loss) -> bool:
    """Whether it is about layers of both models, which then read the same tokens."""
    return isinstance(entry, LayerLoss) and entry.layers != "vectors"


def settings_of(name: str) -> dict[str, Any]:
    """The settings that the entry of this name has, and what each is if it is not given.

    Raises:
        KeyError: there is no such loss.
    """
    kinds = {loss: kind for kind in _KINDS for loss in get_args(kind.model_fields["name"].annotation)}
    return {key: field.default for key, field in kinds[name].model_fields.items() if key != "name"}
