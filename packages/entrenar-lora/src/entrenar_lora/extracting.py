"""`extract`: the library's work with a progress display."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_common.progress import Progress
from entrenar_core.errors import UsageError
from entrenar_lora.merging import MergeRequest, opened_model, run_as_adapter

if TYPE_CHECKING:
    from entrenar_core.adapters.results import AdapterReport


@dataclass(frozen=True, slots=True)
class ExtractRequest:
    """The options of the command."""

    base: str | None
    tuned: str | None
    adapter: str | None
    output: Path
    rank: int | None
    energy: float | None
    targets: str | None
    modules_to_save: str | None
    dtype: str
    seed: int
    alpha: float | None
    allow_pickle: bool
    force: bool


def run_extract(request: ExtractRequest) -> "AdapterReport":
    """Makes an adapter of two models, or a smaller one of an adapter.

    Raises:
        UsageError: options contradict each other.
        ModelError: the models do not belong together.
        OutputError: the output is there already, or cannot be written.
    """
    if request.adapter is not None:
        return _smaller(request)
    if request.base is None or request.tuned is None:
        missing = "--base" if request.base is None else "--tuned"
        raise UsageError(f"there is no {missing}", "an adapter is made of two models, --base and --tuned")
    if request.alpha is not None:
        raise UsageError("--alpha is of an --adapter that is cut", "leave it out: the scale is 1")
    from entrenar_core.adapters.extracting import Extraction, extract
    from entrenar_core.conversion.files import require_free
    from entrenar_core.formats.encoding import dtype_called

    how = Extraction(
        request.rank,
        request.energy,
        _names(request.targets),
        _names(request.modules_to_save) or (),
        dtype_called(request.dtype),
        request.seed,
    )
    require_free(request.output, folder=True, force=request.force)
    with (
        Progress() as progress,
        opened_model(request.base, None, progress, request.allow_pickle) as base,
        opened_model(request.tuned, None, progress, request.allow_pickle) as tuned,
    ):
        task = progress.task("extracts", unit="tensors")
        return extract(
            base,
            tuned,
            request.output,
            how,
            force=request.force,
            progress=lambda done, total: task.update(done, total=total),
        )


def _smaller(request: ExtractRequest) -> "AdapterReport":
    if request.base is not None or request.tuned is not None:
        raise UsageError("--adapter is cut by itself, without models", "leave out --base and --tuned")
    if request.rank is None or request.energy is not None or request.targets or request.modules_to_save:
        raise UsageError("an --adapter is cut to a rank, all of it", "give --rank, and no --energy or names")
    assert request.adapter is not None
    return run_as_adapter(
        MergeRequest(
            base=None,
            adapters=(request.adapter,),
            output=request.output,
            combine="svd",
            rank=request.rank,
            dtype=request.dtype,
            alpha=request.alpha,
            allow_pickle=request.allow_pickle,
            force=request.force,
        )
    )


def _names(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise UsageError("a list of modules is empty", "write names so: q_proj,v_proj")
    return found
