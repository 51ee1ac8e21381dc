"""The `distillation` section: all losses as a list, or the usual ones in short."""

from typing import Annotated, Literal

from pydantic import Field

from entrenar_core.config.losses import LAYERS, DivergenceName, Heads, HeadWeights, Layers, LossEntry, Projection
from entrenar_core.config.schedules import ScheduledShare, ScheduledTemperature, ScheduledWeight
from entrenar_core.config.types import Count, Index, NonNegative, Probability, Section, Switch


class Progressive(Section):
    """Hidden states of layers, in short."""

    enabled: Switch = Field(True, description="Whether it takes part.")
    layer_mapping: Layers = Field("uniform", title=LAYERS, description="As `layers` of an entry.")
    projection: Projection = Field("linear", description="Learnt, from the student's width to the teacher's.")
    loss: Literal["mse", "cosine", "patient", "cka"] = Field("mse", description="How the states are compared.")
    weight: ScheduledWeight = Field(
        0.3, title="a number from 0 to 1,000,000, or a schedule", description="What the loss is multiplied by."
    )


class Attention(Section):
    """What attention looks at, in short."""

    enabled: Switch = Field(True, description="Whether it takes part.")
    layer_mapping: Layers = Field("uniform", title=LAYERS, description="As `layers` of an entry.")
    loss: Literal["kl", "mse", "maps"] = Field("kl", description="Distributions, scores, or where layers are active.")
    head_mapping: Heads = Field("auto", title="auto, grouped, or pairs of heads", description="Which heads.")
    head_weighting: HeadWeights = Field("uniform", description="How heads are weighted against each other.")
    weight: ScheduledWeight = Field(
        0.1, title="a number from 0 to 1,000,000, or a schedule", description="What the loss is multiplied by."
    )


class Relations(Section):
    """How tokens or rows lie to each other, in short."""

    enabled: Switch = Field(True, description="Whether it takes part.")
    loss: Literal["minilm", "rkd_distance", "rkd_angle", "similarity_preserving", "in_batch_similarity"] = Field(
        "minilm", description="Which relations."
    )
    layer_mapping: Layers | None = Field(
        None,
        title=LAYERS,
        description="As `layers` of an entry: if not given, final, or the vectors of sentences.",
    )
    weight: ScheduledWeight = Field(
        1.0, title="a number from 0 to 1,000,000, or a schedule", description="What the loss is multiplied by."
    )


class Exits(Section):
    """Deep supervision: layers inside of the student answer too, through exits that are trained with it."""

    enabled: Switch = Field(True, description="Whether they take part.")
    layers: Annotated[tuple[Index, ...], Field(min_length=1, title="a list of layers")] | None = Field(
        None, description="The student's layers with an exit, counted from 0; all but the last, if not given."
    )
    learn_from: Literal["final", "teacher", "labels"] = Field(
        "final", description="To answer as the student's last layer does, as the teacher does, or as the labels say."
    )
    divergence: DivergenceName = Field("forward_kl", description="How far an exit is from what it learns.")
    temperature: ScheduledTemperature | None = Field(
        None,
        title="a number from 0.01 to 1000, or a schedule",
        description="Of the divergence; `distillation.temperature` if not given.",
    )
    weight: ScheduledWeight = Field(
        0.3,
        title="a number from 0 to 1,000,000, or a schedule",
        description="What the mean over exits is multiplied by.",
    )


class DistillationSection(Section):
    """What the student learns from the teacher. loss = alpha · T² · D(teacher, student at T) + (1 − alpha) · CE, and
    what `progressive`, `attention` and `relations` add; or all of it as a list of `losses`.
    """

    temperature: ScheduledTemperature = Field(
        2.0,
        title="a number from 0.01 to 1000, or a schedule",
        description="Softens both distributions; T² restores the size of the gradient, or T, where that is enough.",
    )
    alpha: ScheduledShare = Field(
        0.5,
        title="a number from 0 to 1, or a schedule",
        description="Weight of the teacher's soft targets; the labels get 1 − alpha.",
    )
    divergence: DivergenceName = Field("forward_kl", description="How far the student is from the teacher, D.")
    top_k: Count | None = Field(
        None, description="Look only at the tokens or classes that the teacher finds likeliest, so many."
    )
    top_k_tail: Switch = Field(
        True, description="Count what `top_k` leaves out as one token more; false: renormalise over the `top_k`."
    )
    entropy_threshold: NonNegative | None = Field(
        None, description="Only rows or positions where the teacher's entropy at T is above this, in nats."
    )
    label_smoothing: Probability = Field(
        0.0, description="Part of a label that CE gives to all tokens or classes evenly."
    )
    progressive: Progressive | None = Field(None, description="Also hidden states of layers.")
    attention: Attention | None = Field(None, description="Also what attention looks at.")
    relations: Relations | None = Field(None, description="Also how tokens or rows lie to each other.")
    exits: Exits | None = Field(None, description="Also answers of layers inside of the student.")
    losses: Annotated[tuple[LossEntry, ...], Field(min_length=1)] | None = Field(
        None,
        title="a list of losses",
        description="All losses, in place of the settings above but `temperature` and `exits`.",
    )
