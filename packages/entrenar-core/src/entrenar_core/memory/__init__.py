"""What memory a training or a generation takes, predicted from configurations: the only place that does so."""

from typing import TYPE_CHECKING

from entrenar_core.lazily import importing
from entrenar_core.memory.estimate import COMPONENTS, Estimate, Moment, Trace
from entrenar_core.memory.jobs import (
    CachedSignals,
    HeldModel,
    InferenceJob,
    Job,
    ReadingJob,
    Sharding,
    Teaching,
    TrainingJob,
)

if TYPE_CHECKING:
    from entrenar_core.memory.predicting import predict

__all__ = [
    "COMPONENTS",
    "CachedSignals",
    "Estimate",
    "HeldModel",
    "InferenceJob",
    "Job",
    "Moment",
    "ReadingJob",
    "Sharding",
    "Teaching",
    "Trace",
    "TrainingJob",
    "predict",
]

__getattr__ = importing(__name__, {"predict": "predicting"})
