"""entrenar-distill: from a YAML file to a student that transformers loads.

Names are imported when they are first used, so that `--help` does not wait for the schema.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entrenar_distill.reports import Check, ValidationReport
    from entrenar_distill.validation import validate

__all__ = ["Check", "ValidationReport", "validate"]


def __getattr__(name: str) -> Any:
    if name == "validate":
        from entrenar_distill.validation import validate

        return validate
    if name in __all__:
        from entrenar_distill import reports

        return getattr(reports, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
