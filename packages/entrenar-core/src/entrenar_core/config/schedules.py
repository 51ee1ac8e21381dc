"""Settings that may change over a training: a number, or a schedule in its place."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from entrenar_core.config.types import Index, Section, Share, Temperature, Weight


class Schedule(Section):
    """From `start` to `end` over the optimiser steps after a warm-up."""

    schedule: Literal["constant", "linear", "cosine", "exponential"] = Field(description="The way from start to end.")
    start: Weight = Field(description="The value after the warm-up.")
    end: Weight | None = Field(None, description="The value of the last step; a constant has none.")
    warmup_from: Weight | None = Field(
        None, description="The value of the first step of the warm-up; `start` if not given."
    )
    warmup_steps: Index = Field(0, description="Optimiser steps from `warmup_from` to `start`.")


class TemperatureSchedule(Schedule):
    """A temperature that changes from `start` to `end` over the optimiser steps after a warm-up."""

    start: Temperature = Field(description="The temperature after the warm-up.")
    end: Temperature | None = Field(None, description="The temperature of the last step; a constant has none.")
    warmup_from: Temperature | None = Field(
        None, description="The temperature of the first step of the warm-up; `start` if not given."
    )


class ShareSchedule(Schedule):
    """A share that changes from `start` to `end` over the optimiser steps after a warm-up."""

    start: Share = Field(description="The share after the warm-up.")
    end: Share | None = Field(None, description="The share of the last step; a constant has none.")
    warmup_from: Share | None = Field(
        None, description="The share of the first step of the warm-up; `start` if not given."
    )


NUMBER, SCHEDULE = "number", "schedule"
"""The tags of the two forms, which places of mistakes name."""


def _form(value: Any) -> str:
    return SCHEDULE if isinstance(value, dict | Schedule) else NUMBER


@dataclass(frozen=True, slots=True)
class Remainder:
    """What is left of 1: the weight of the labels beside soft targets."""

    of: "float | Schedule"


ScheduledTemperature = Annotated[
    Annotated[Temperature, Tag(NUMBER)] | Annotated[TemperatureSchedule, Tag(SCHEDULE)], Discriminator(_form)
]
ScheduledShare = Annotated[
    Annotated[Share, Tag(NUMBER)] | Annotated[ShareSchedule, Tag(SCHEDULE)], Discriminator(_form)
]
ScheduledWeight = Annotated[Annotated[Weight, Tag(NUMBER)] | Annotated[Schedule, Tag(SCHEDULE)], Discriminator(_form)]
Setting = float | Schedule | Remainder
"""What `value_at` gives the value of in some step."""
