"""entrenar-inspect: looks inside model files, compares, checks and converts them.

Names are imported when they are first used, so that `--help` waits for nothing.
"""

from typing import TYPE_CHECKING

from entrenar_core.lazily import importing

if TYPE_CHECKING:
    from entrenar_inspect.comparing import compare
    from entrenar_inspect.layers import list_layers
    from entrenar_inspect.reports.comparison import Comparison
    from entrenar_inspect.reports.layers import LayersReport
    from entrenar_inspect.reports.summary import ModelSummary
    from entrenar_inspect.reports.validation import Check, ValidationReport
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
    "Check": "reports.validation",
    "Comparison": "reports.comparison",
    "LayersReport": "reports.layers",
    "ModelSummary": "reports.summary",
    "ValidationReport": "reports.validation",
    "compare": "comparing",
    "list_layers": "layers",
    "summarize": "summary",
    "validate": "validating",
}

__getattr__ = importing(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
