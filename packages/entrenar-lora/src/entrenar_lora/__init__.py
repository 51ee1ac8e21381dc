"""entrenar-lora: plans, trains, merges, inspects, converts and extracts low-rank adapters.

Names are imported when they are first used, so that `--help` waits for nothing.
"""

from typing import TYPE_CHECKING

from entrenar_core.lazily import importing

if TYPE_CHECKING:
    from entrenar_lora.comparing import compare
    from entrenar_lora.planning import plan
    from entrenar_lora.reports.compare import CompareReport
    from entrenar_lora.reports.inspect import InspectReport
    from entrenar_lora.reports.plan import PlanReport

__all__ = ["CompareReport", "InspectReport", "PlanReport", "compare", "plan"]

_HOMES = {
    "CompareReport": "reports.compare",
    "InspectReport": "reports.inspect",
    "PlanReport": "reports.plan",
    "compare": "comparing",
    "plan": "planning",
}

__getattr__ = importing(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
