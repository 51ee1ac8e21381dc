"""`merge`: the library's work with a progress display."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from entrenar_common.progress import Progress
from entrenar_core.errors import UsageError
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.references import HubReference, Reference, parse_reference

if TYPE_CHECKING:
    from entrenar_core.adapters.adapter import Adapter
    from entrenar_core.adapters.combining import Combination, Method
    from entrenar_core.adapters.planning import MergePlan
    from entrenar_core.adapters.results import AdapterReport, MergeReport
    from entrenar_core.conversion.converting import Quantizing
    from entrenar_core.stored_model import StoredModel


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """The options of the command."""

    base: str | None
    adapters: tuple[str, ...]
    output: Path
    scale: float = 1.0
    weights: str | None = None
    combine: str = "linear"
    density: float | None = None
    rank: int | None = None
    seed: int = 42
    dtype: str | None = None
    to: str | None = None
    quantize: str | None = None
    shard_size: str | None = None
    verify: bool = False
    alpha: float | None = None
    rslora: bool = False
    allow_pickle: bool = False
    revision: str | None = None
    dry_run: bool = False
    force: bool = False


def run_merge(request: MergeRequest) -> "MergeReport":
    """Merges adapters into a base model.

    Raises:
        UsageError: options contradict each other, or an alpha is not known.
        ModelError: base and adapters do not fit, or cannot be merged.
        OutputError: the output is there already, or cannot be written.
    """
    from entrenar_core.conversion.files import require_free

    if request.base is None:
        raise UsageError("there is no --base to merge into", "name it, or write an adapter with --as-adapter")
    if request.rank is not None and request.combine in ("ties", "dare"):
        raise UsageError(
            f"--combine {request.combine} changes whole matrices of a base, which have no --rank",
            "leave it out, or write an adapter with --as-adapter",
        )
    kind, dtype, quantizing = _written(request)
    how, weights = _combination(request), _weights(request)
    _require_possible(request, kind)
    require_free(request.output, folder=not request.output.name.endswith(FORMATS[kind].suffixes), force=request.force)
    with Progress() as progress, ExitStack() as opened:
        base = opened.enter_context(opened_model(request.base, request.revision, progress, request.allow_pickle))
        adapters = list(zip((opened.enter_context(one) for one in _adapters(request, progress)), weights, strict=True))
        return _merged(request, _planned(base, adapters, how), adapters, kind, dtype, quantizing, progress)


def _planned(base: "StoredModel", adapters: "list[tuple[Adapter, float]]", how: "Combination") -> "MergePlan":
    from entrenar_core.adapters.planning import plan_merge
    from entrenar_core.conversion.soundness import require_finite_weights

    for adapter, _ in adapters:
        require_finite_weights(adapter.model)
    return plan_merge(base, adapters, how)


def _merged(
    request: MergeRequest,
    plan: "MergePlan",
    adapters: "list[tuple[Adapter, float]]",
    kind: WeightFormat,
    dtype: str | None,
    quantizing: "Quantizing | None",
    progress: Progress,
) -> "MergeReport":
    from entrenar_core.adapters import merging

    checker = None
    if request.verify:
        from entrenar_core.adapters.checking import Checker

        checker = Checker(plan, adapters, dtype)
        checker.require_possible()
    if request.dry_run:
        return merging.describe_merge(plan, request.output, kind, dtype)
    task = progress.task("merges", unit="bytes")

    def told(more: int, total: int) -> None:
        task.update(task.completed + more, total=total)

    if kind is not WeightFormat.SAFETENSORS:
        report = merging.convert_merged(
            plan, kind, request.output, dtype=dtype, quantizing=quantizing, force=request.force, progress=told
        )
        task.end()
        return report
    checks = []

    def compare(folder: Path) -> None:
        task.end()
        comparing = progress.task("compares with peft")
        if checker is not None:
            checks.append(checker(folder))
        comparing.end()

    report = merging.write_merged(
        plan,
        request.output,
        dtype=dtype,
        shard_bytes=_shard_bytes(request),
        check=None if checker is None else compare,
        force=request.force,
        progress=told,
    )
    task.end()
    return replace(report, check=checks[0]) if checks else report


def run_as_adapter(request: MergeRequest) -> "AdapterReport":
    """Writes a combination of adapters as an adapter; raises as `run_merge`."""
    from entrenar_core.adapters.recombining import write_combined
    from entrenar_core.conversion.files import require_free

    of_models = {"--base": request.base, "--revision": request.revision, "--to": request.to}
    for flag, asked in {**of_models, "--quantize": request.quantize, "--verify": request.verify}.items():
        if asked:
            raise UsageError(f"{flag} is for a merged model, and --as-adapter writes an adapter", f"leave out {flag}")
    if request.dry_run or request.shard_size:
        raise UsageError("an adapter has neither shards nor a dry run", "leave out --shard-size and --dry-run")
    how, weights, dtype = _combination(request), _weights(request), _dtype(request)
    require_free(request.output, folder=True, force=request.force)
    with Progress() as progress, ExitStack() as opened:
        adapters = list(zip((opened.enter_context(one) for one in _adapters(request, progress)), weights, strict=True))
        task = progress.task("combines", unit="modules")
        return write_combined(
            adapters,
            how,
            request.output,
            dtype=dtype or "F32",
            force=request.force,
            progress=lambda done, total: task.update(done, total=total),
        )


def _adapters(request: MergeRequest, progress: Progress) -> "Iterator[Adapter]":
    from entrenar_core.adapters.reading import open_adapter

    for name in request.adapters:
        yield open_adapter(
            at_hand(parse_reference(name), progress, allow_pickle=request.allow_pickle),
            alpha=request.alpha,
            rslora=request.rslora,
            allow_pickle=request.allow_pickle,
        )


@contextmanager
def opened_model(name: str, revision: str | None, progress: Progress, allow_pickle: bool) -> "Iterator[StoredModel]":
    """A model that is opened, fetched before where it is on the Hub."""
    from entrenar_core.stored_model import open_model

    reference = at_hand(parse_reference(name, revision=revision), progress, allow_pickle=allow_pickle)
    with open_model(reference, allow_pickle=allow_pickle) as model:
        yield model


def at_hand(reference: Reference, progress: Progress, *, allow_pickle: bool) -> Reference:
    """The same on this machine: what is on the Hub is fetched."""
    if not isinstance(reference, HubReference):
        return reference
    from entrenar_core.hub import fetch_model
    from entrenar_core.references import PathReference

    task = progress.task("fetches", unit="bytes")
    found = fetch_model(
        reference,
        allow_pickle=allow_pickle,
        progress=lambda one: task.update(one.done_bytes, total=one.total_bytes),
    )
    task.end()
    return PathReference(str(found.path))


def _combination(request: MergeRequest) -> "Combination":
    from entrenar_core.adapters.combining import Combination

    if request.rank is not None and request.combine in ("linear", "cat"):
        raise UsageError(f"--combine {request.combine} adds changes as they are", "take --combine svd for a --rank")
    return Combination(cast("Method", request.combine), request.density, request.rank, request.seed)


def _weights(request: MergeRequest) -> list[float]:
    """One for each adapter, times the scale."""
    import math

    texts = ["1"] * len(request.adapters) if request.weights is None else request.weights.split(",")
    try:
        found = [float(text) * request.scale for text in texts]
    except ValueError:
        raise UsageError(f"--weights {request.weights} are no numbers", "write them so: --weights 0.7,0.3") from None
    if len(found) != len(request.adapters):
        raise UsageError(
            f"there are {len(request.adapters)} adapters and {len(found)} weights", "give a weight for each, in order"
        )
    if not all(math.isfinite(one) for one in found):
        raise UsageError("a weight or the scale is not finite", "give numbers such as 0.7")
    return found


def _dtype(request: MergeRequest) -> str | None:
    from entrenar_core.formats.encoding import dtype_called

    return None if request.dtype is None else dtype_called(request.dtype)


def _shard_bytes(request: MergeRequest) -> int | None:
    from entrenar_core.units import parse_size

    if request.shard_size is None:
        return None
    found = parse_size(request.shard_size)
    if found < 1:
        raise UsageError(f"--shard-size {request.shard_size}: a file holds something", "write it as 5GB")
    return found


def _written(request: MergeRequest) -> "tuple[WeightFormat, str | None, Quantizing | None]":
    """The format, the dtype or the mix of what is written."""
    kind = _format(request)
    if request.quantize is None:
        return kind, _dtype(request), None
    if request.dtype is not None:
        raise UsageError("--dtype and --quantize both say what weights become", "give one of the two")
    from entrenar_core.conversion.converting import Quantizing
    from entrenar_core.quantization.mixes import mix_named

    if kind is WeightFormat.SAFETENSORS:
        raise UsageError("safetensors files are not quantised", "take --to gguf, or --dtype")
    return kind, None, Quantizing(mix_named(request.quantize))


def _format(request: MergeRequest) -> WeightFormat:
    ending = [kind for kind, row in FORMATS.items() if request.output.name.endswith(row.suffixes)]
    if request.to is not None:
        kind = WeightFormat(request.to)
        if ending and kind not in ending:
            raise UsageError(f"{request.output} ends as a file of {ending[-1]} does", "choose another name or --to")
        return kind
    return ending[-1] if ending else WeightFormat.SAFETENSORS


def _require_possible(request: MergeRequest, kind: WeightFormat) -> None:
    other = kind is not WeightFormat.SAFETENSORS
    if request.verify and (other or request.output.name.endswith(".safetensors")):
        raise UsageError(
            "--verify loads the merged model in transformers, which needs a folder in safetensors",
            "verify a merge to a folder; `entrenar-distill export --format gguf --verify` verifies a GGUF of it",
        )
    if request.verify and request.dry_run:
        raise UsageError("a dry run writes nothing to verify", "leave out one of --dry-run and --verify")
    if request.shard_size is not None and other:
        raise UsageError("--shard-size is for folders of safetensors", "leave it out")
