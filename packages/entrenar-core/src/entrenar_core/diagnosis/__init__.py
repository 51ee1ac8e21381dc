"""Looks at both models and the data before training, and at a training's metrics; trains nothing, writes nothing."""

from entrenar_core.diagnosis.findings import (
    AtTemperature,
    Comparison,
    Diagnosis,
    Encoder,
    Layers,
    OnLabels,
    SentenceDiagnosis,
    TemperatureAdvice,
    Trouble,
)
from entrenar_core.diagnosis.troubles import find_troubles

__all__ = [
    "AtTemperature",
    "Comparison",
    "Diagnosis",
    "Encoder",
    "Layers",
    "OnLabels",
    "SentenceDiagnosis",
    "TemperatureAdvice",
    "Trouble",
    "find_troubles",
]
