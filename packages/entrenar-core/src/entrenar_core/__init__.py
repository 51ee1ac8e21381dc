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
    from entrenar_core.config.finetuning import FineTuneConfig
    from entrenar_core.config.loading import load_finetuning, parse_finetuning
    from entrenar_core.errors import EntrenarError
    from entrenar_core.exporting.exporting import export
    from entrenar_core.exporting.result import ExportReport
    from entrenar_core.exporting.settings import ExportSettings
    from entrenar_core.formats import WeightFormat
    from entrenar_core.hub import download_dataset, fetch_model, list_files
    from entrenar_core.references import parse_reference
    from entrenar_core.reports import RunReport, Scores, TuneReport
    from entrenar_core.stored_model import StoredModel, open_model
    from entrenar_core.training.callbacks import Callback
    from entrenar_core.training.distillation import distill, plan
    from entrenar_core.training.finetuning import FineTuneTrainer

__all__ = [
    "Callback",
    "DistillationConfig",
    "EntrenarError",
    "ExportReport",
    "ExportSettings",
    "FineTuneConfig",
    "FineTuneTrainer",
    "ModelArtifact",
    "RunReport",
    "Scores",
    "StoredModel",
    "TuneReport",
    "WeightFormat",
    "distill",
    "download_dataset",
    "export",
    "fetch_model",
    "list_files",
    "load_config",
    "load_finetuning",
    "open_model",
    "parse_config",
    "parse_finetuning",
    "parse_reference",
    "plan",
]

_HOMES = {
    "Callback": "training.callbacks",
    "DistillationConfig": "config",
    "EntrenarError": "errors",
    "ExportReport": "exporting.result",
    "ExportSettings": "exporting.settings",
    "FineTuneConfig": "config.finetuning",
    "FineTuneTrainer": "training.finetuning",
    "ModelArtifact": "artifact",
    "RunReport": "reports",
    "Scores": "reports",
    "StoredModel": "stored_model",
    "TuneReport": "reports",
    "distill": "training.distillation",
    "WeightFormat": "formats",
    "download_dataset": "hub",
    "export": "exporting.exporting",
    "fetch_model": "hub",
    "list_files": "hub",
    "load_config": "config",
    "load_finetuning": "config.loading",
    "open_model": "stored_model",
    "parse_config": "config",
    "parse_finetuning": "config.loading",
    "parse_reference": "references",
    "plan": "training.distillation",
}

__getattr__ = importing(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
