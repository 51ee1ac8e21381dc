"""The whole model behind an adapter that a run has trained, beside it in the folder of the result."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_core.adapters.merging import write_merged
from entrenar_core.adapters.planning import plan_merge
from entrenar_core.adapters.reading import open_adapter
from entrenar_core.artifact import ModelArtifact
from entrenar_core.conversion.converting import convert
from entrenar_core.formats import WeightFormat
from entrenar_core.references import PathReference
from entrenar_core.stored_model import StoredModel, open_model

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation

MERGED = "merged"
"""Its folder."""


def merge_result(folder: Path, prepared: "Preparation") -> None:
    """Merges the adapter in `folder` into the weights that it was trained beside, as they are stored; those of a GGUF
    as they are dequantised.

    Raises:
        ModelError: the adapter is of a method that is not merged, or its base is stored in a way that it is not into.
        OutputError: the model cannot be written.
    """
    assert prepared.student is not None, "adapters are of models that are there"
    with open_adapter(PathReference(str(folder))) as adapter, _base(prepared.student, folder) as base:
        write_merged(plan_merge(base, [(adapter, 1.0)]), folder / MERGED, force=True)


@contextmanager
def _base(artifact: ModelArtifact, folder: Path) -> Iterator[StoredModel]:
    place = artifact.weight_files[0] if artifact.format is WeightFormat.GGUF else artifact.path
    if artifact.format is not WeightFormat.GGUF:
        pickles = artifact.format is WeightFormat.PYTORCH
        with open_model(PathReference(str(place)), format=artifact.format, allow_pickle=pickles) as model:
            yield model
        return
    whole = folder / ".base"
    try:
        with open_model(PathReference(str(place))) as model:
            convert(model, WeightFormat.SAFETENSORS, whole, force=True)
        with open_model(PathReference(str(whole))) as model:
            yield model
    finally:
        shutil.rmtree(whole, ignore_errors=True)
