"""entrenar-distill: from a YAML file to a student that transformers loads."""

from entrenar_distill.reports import Check, ValidationReport
from entrenar_distill.validation import validate

__all__ = ["Check", "ValidationReport", "validate"]
