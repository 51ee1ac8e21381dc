"""What is exported: a result folder, a training checkpoint, or any model on this machine."""

from collections.abc import Mapping
from pathlib import Path

from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.exporting.card import card_facts, described_in, gguf_card_metadata
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.gguf_values import Value
from entrenar_core.references import HubReference, PathReference, Reference
from entrenar_core.stored_model import StoredModel, open_model

_TELLING = (WeightFormat.GGUF, WeightFormat.APR, WeightFormat.APR_JSON)
_ADAPTER = "adapter_config.json"


def require_ready(folder: Path) -> None:
    """Refuses the folder of a run that has not ended, and names the checkpoint to take instead.

    Raises:
        UsageError: the run goes on or was interrupted.
        ModelError: the folder holds an adapter without the model that it changes.
    """
    if not folder.is_dir():
        return
    if (folder / "run.json").exists():
        _require_complete(folder)
    if (folder / _ADAPTER).is_file() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter and not the model that it changes", "merge it into its base model first"
        )


def _require_complete(folder: Path) -> None:
    from entrenar_core.training.run_folder import complete_checkpoints, read_manifest

    run = read_manifest(folder)
    if run is not None and run.get("status") != "complete":
        checkpoints = complete_checkpoints(folder / "checkpoints")
        hint = f"name a checkpoint: {checkpoints[-1]}" if checkpoints else "let it end first"
        raise UsageError(f"the run in {folder} is {run.get('status')}, and has no student yet", hint)


def told_in_file(
    kind: WeightFormat, source_format: WeightFormat | None, folder: Path, reference: Reference
) -> Mapping[str, Value] | None:
    """Where the model in a folder is from, as the `general.*` keys of a GGUF say it: for formats that have a place for
    it. A GGUF says it already.
    """
    if kind not in _TELLING or source_format is WeightFormat.GGUF:
        return None
    repo_id = reference.repo_id if isinstance(reference, HubReference) else None
    return gguf_card_metadata(card_facts(described_in(folder), repo_id=repo_id))


def open_source(artifact: ModelArtifact, *, allow_pickle: bool = False) -> StoredModel:
    """The tensors of a model on this machine.

    Raises:
        ModelError: its files are unsound.
    """
    single = artifact.format is WeightFormat.GGUF and len(artifact.weight_files) == 1
    path = artifact.weight_files[0] if single else artifact.path
    return open_model(PathReference(str(path)), format=artifact.format, allow_pickle=allow_pickle)
