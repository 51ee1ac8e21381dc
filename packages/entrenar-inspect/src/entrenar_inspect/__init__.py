"""entrenar-inspect: looks inside model files, compares, checks and converts them.

Names are imported when they are first used, so that `--help` waits for nothing.
"""

from typing import TYPE_CHECKING

from entrenar_core.lazily import importing

if TYPE_CHECKING:
    from entrenar_inspect.comparing import compare
    from entrenar_inspect.layers import list_layers
    from entrenar_inspect.reports import Check, Comparison, LayersReport, ModelSummary, ValidationReport
    from entrenar_inspect.summary import summarize
    from entrenar_inspect.validating import validate

__all__ = [
    "Check",
    "Comparison",
    "LayersReport",
    "ModelSummary",
    "ValidationReport",
    "compare",
    "list_layers",
    "summarize",
    "validate",
]

_HOMES = {
    "Check": "reports",
    "Comparison": "reports",
    "LayersReport": "reports",
    "ModelSummary": "reports",
    "ValidationReport": "reports",
    "compare": "comparing",
    "list_layers": "layers",
    "summarize": "summary",
    "validate": "validating",
}

__getattr__ = importing(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
