"""The library of entrenar: small models out of large ones.

    from entrenar_core import distill, load_config
    report = distill(load_config("distill.yaml"))

Names are imported when they are first used, so that what needs no torch does not wait for it.
"""

from typing import TYPE_CHECKING

from entrenar_core.lazily import importing

if TYPE_CHECKING:
    from entrenar_core.artifact import ModelArtifact
    from entrenar_core.config import DistillationConfig, load_config, parse_config
    from entrenar_core.errors import EntrenarError
    from entrenar_core.exporting.exporting import export
    from entrenar_core.exporting.result import ExportReport
    from entrenar_core.exporting.settings import ExportSettings
    from entrenar_core.formats import WeightFormat
    from entrenar_core.hub import download_dataset, fetch_model, list_files
    from entrenar_core.references import parse_reference
    from entrenar_core.reports import RunReport, Scores
    from entrenar_core.stored_model import StoredModel, open_model
    from entrenar_core.training.callbacks import Callback
    from entrenar_core.training.distillation import distill, plan

__all__ = [
    "Callback",
    "DistillationConfig",
    "EntrenarError",
    "ExportReport",
    "ExportSettings",
    "ModelArtifact",
    "RunReport",
    "Scores",
    "StoredModel",
    "WeightFormat",
    "distill",
    "download_dataset",
    "export",
    "fetch_model",
    "list_files",
    "load_config",
    "open_model",
    "parse_config",
    "parse_reference",
    "plan",
]

_HOMES = {
    "Callback": "training.callbacks",
    "DistillationConfig": "config",
    "EntrenarError": "errors",
    "ExportReport": "exporting.result",
    "ExportSettings": "exporting.settings",
    "ModelArtifact": "artifact",
    "RunReport": "reports",
    "Scores": "reports",
    "StoredModel": "stored_model",
    "distill": "training.distillation",
    "WeightFormat": "formats",
    "download_dataset": "hub",
    "export": "exporting.exporting",
    "fetch_model": "hub",
    "list_files": "hub",
    "load_config": "config",
    "open_model": "stored_model",
    "parse_config": "config",
    "parse_reference": "references",
    "plan": "training.distillation",
}

__getattr__ = importing(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
