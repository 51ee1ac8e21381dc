"""`entrenar-lora inspect`: an adapter's figures, gathered by module, kind, layer and whole."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from entrenar_core.adapters.adapter import Adapter
from entrenar_core.adapters.reading import adapter_of
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import StoredModel, open_model
from entrenar_lora.gathering import distinct, gathered, groups_of, kind_names, module_row, strip_of
from entrenar_lora.reports.inspect import InspectReport, ScaleRow

if TYPE_CHECKING:
    from entrenar_core.adapters.against_base import IntruderSearch
    from entrenar_core.adapters.analysis import AdapterAnalysis

_OTHERS = {
    "ADALORA": "low-rank matrices with singular values of their own between them, whose rank was cut while it trained",
    "ADAPTION_PROMPT": "learned vectors that the upper layers attend to, behind a gate",
    "BOFT": "orthogonal matrices in butterfly form that weights are multiplied by",
    "FOURIERFT": "changes of weights given by some of their Fourier coefficients",
    "IA3": "learned vectors that keys, values and the neurons of feed-forward layers are multiplied by",
    "LN_TUNING": "norms of the base model, trained again",
    "LOHA": "changes of weights that are the elementwise product of two low-rank ones",
    "LOKR": "changes of weights that are a Kronecker product",
    "MULTITASK_PROMPT_TUNING": "learned vectors in front of the input, shared by several tasks",
    "OFT": "orthogonal matrices that weights are multiplied by",
    "PREFIX_TUNING": "learned keys and values in front of those of every layer",
    "PROMPT_TUNING": "learned vectors in front of the embeddings of the input",
    "P_TUNING": "vectors in front of the input that a small network makes",
    "VERA": "learned vectors that scale low-rank matrices which are random and shared",
}
_PLAIN = ("LORA",)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for beside the adapter itself."""

    base: str | None = None
    alpha: float | None = None
    rslora: bool = False
    file: str | None = None
    allow_pickle: bool = False
    figure: str | None = None
    intruders: int = 10
    intruder_threshold: float = 0.5
    by_layer: bool = False
    by_module: bool = False


def inspect(text: str, wanted: Wanted) -> InspectReport:
    """Looks into the adapter that `text` refers to.

    Raises:
        UsageError: an option contradicts its files, or needs what is not given.
        NotFoundError, ModelError: it is not there, broken, or for another base.
    """
    _require_meant(wanted)
    with _opened(text, wanted) as model:
        _require_adapter(text, model)
        method = str((model.adapter_config or {}).get("peft_type") or "LORA")
        if method not in _PLAIN:
            return _other(text, model, method, wanted)
        adapter = adapter_of(model, alpha=wanted.alpha, rslora=wanted.rslora)
        return _report(text, adapter, _analysed(adapter, wanted), wanted)


def _require_adapter(text: str, model: StoredModel) -> None:
    """Refuses what is no adapter, or one in a form that is not looked into."""
    if model.metadata.get("general.type") == "adapter":
        hint = "convert it first: entrenar-lora convert … --to peft"
        raise ModelError(f"{text} is an adapter as llama.cpp has it", hint)
    if model.adapter_config is None and not any("lora_" in name for name in model.tensors):
        raise ModelError(f"{text} is a model and no adapter", "`entrenar-inspect info` looks into models")


def _require_meant(wanted: Wanted) -> None:
    if wanted.figure in ("relative", "intruders") and wanted.base is None:
        raise UsageError(f"--figure {wanted.figure} is one beside the base model", "give --base, or another figure")
    if wanted.figure == "intruders" and not wanted.intruders:
        raise UsageError("--figure intruders needs --intruders above 0", "leave one of the two out")


@contextmanager
def _opened(text: str, wanted: Wanted) -> Iterator[StoredModel]:
    with open_model(parse_reference(text), file=wanted.file, allow_pickle=wanted.allow_pickle) as model:
        if not model.is_here:
            raise ModelError(
                f"the values of {text} are not here", f"fetch it: `hf download {text}`, and name its folder"
            )
        yield model


def _analysed(adapter: Adapter, wanted: Wanted) -> "AdapterAnalysis":
    from entrenar_common.progress import Progress
    from entrenar_core.adapters.analysis import analyse
    from entrenar_core.adapters.base import BaseWeights

    opened = nullcontext() if wanted.base is None else open_model(parse_reference(wanted.base))
    with opened as base, Progress() as display:
        task = display.task("computes spectra", total=len(adapter.pairs), unit="modules")
        return analyse(
            adapter,
            base=None if base is None else BaseWeights(base),
            search=None if base is None else _search(wanted),
            progress=task.advance,
        )


def _search(wanted: Wanted) -> "IntruderSearch | None":
    from entrenar_core.adapters.against_base import IntruderSearch

    return IntruderSearch(wanted.intruders, wanted.intruder_threshold) if wanted.intruders else None


def _other(text: str, model: StoredModel, method: str, wanted: Wanted) -> InspectReport:
    """An adapter of another method: what it is, and how large."""
    config = model.adapter_config or {}
    base = config.get("base_model_name_or_path")
    about = _OTHERS.get(method, "a method of peft's whose tensors are not looked into here")
    notes = [fault.message for fault in model.faults]
    if wanted.base is not None:
        notes.append("--base is not read: the figures beside a base are those of low-rank matrices")
    return InspectReport(
        name=text,
        method=method,
        base=base if isinstance(base, str) else None,
        ranks=(),
        alphas=(),
        scales=(),
        rslora=False,
        dora=False,
        init=None,
        targets=tuple(sorted({name.rpartition(".")[0].rpartition(".")[2] for name in model.tensors} - {""})),
        tensors=len(model.tensors),
        parameters=model.values,
        whole=(),
        scaled=False,
        compared_with=None,
        figures=None,
        strip=None,
        kinds=(),
        layers=(),
        modules=(),
        rank_needed=None,
        rank_together=None,
        rank_pattern={},
        scale_table=(),
        findings=(),
        notes=tuple(notes),
        about=f"{about}; it has no ranks",
    )


def _report(text: str, adapter: Adapter, analysis: "AdapterAnalysis", wanted: Wanted) -> InspectReport:
    from entrenar_core.adapters.advice import rank_advice, scale_advice, sentences

    settings, modules = adapter.settings, analysis.modules
    rank, scale = rank_advice(analysis), scale_advice(settings, analysis)
    rows = tuple(map(module_row, modules))
    names = kind_names(modules)
    kinds = groups_of(modules, lambda one: names[one.stack, one.kind])
    return InspectReport(
        name=text,
        method="DoRA" if settings.dora else "rsLoRA" if settings.rslora else "LoRA",
        base=settings.base,
        ranks=distinct(one.rank for one in modules),
        alphas=distinct(one.alpha for one in modules if one.alpha is not None),
        scales=distinct(one.scale for one in modules if one.scale is not None),
        rslora=settings.rslora,
        dora=settings.dora,
        init=settings.init if settings.init != "default" else None,
        targets=tuple(dict.fromkeys(one.module.rpartition(".")[2] for one in modules)),
        tensors=len(adapter.model.tensors),
        parameters=adapter.parameters,
        whole=tuple(adapter.whole),
        scaled=analysis.scaled,
        compared_with=wanted.base,
        figures=gathered(modules),
        strip=strip_of(modules, names, wanted.figure or ("relative" if wanted.base else "norm")),
        kinds=kinds,
        layers=groups_of(modules, lambda one: one.module if one.layer is None else f"{one.stack}.{one.layer}"),
        modules=rows,
        rank_needed=None if rank is None else rank.rank,
        rank_together=None if rank is None else rank.together,
        rank_pattern={} if rank is None else rank.pattern,
        scale_table=() if scale is None else tuple(
            ScaleRow(one, scale.same[one], scale.plain[one], scale.stabilised[one]) for one in scale.same
        ),
        findings=sentences(settings, analysis, rank, text),
        notes=_notes(adapter, analysis, wanted),
        by_layer=wanted.by_layer,
        by_module=wanted.by_module,
    )  # fmt: skip


def _notes(adapter: Adapter, analysis: "AdapterAnalysis", wanted: Wanted) -> tuple[str, ...]:
    notes = list(adapter.inferred)
    if not analysis.scaled:
        notes.append("its alpha is not known, so that norms are those of B · A: give --alpha as it was trained")
    if adapter.settings.dora:
        notes.append(
            "it is DoRA: spectra and norms are those of the low-rank part, before rows are given their lengths"
        )
    if adapter.settings.init not in ("default", "gaussian", "eva", "orthogonal"):
        notes.append(
            f"it began as {adapter.settings.init}, which may take a part out of the base model's weights: beside the "
            "original base its change is then another"
        )
    if wanted.base is not None and wanted.intruders:
        exact = all(one.base is None or one.base.exact or one.base.intruders is None for one in analysis.modules)
        notes.append(
            f"intruders: of the {wanted.intruders} leading left singular vectors of W + ΔW those that no vector of W's "
            f"has a cosine of {wanted.intruder_threshold:g} with (arXiv:2410.21228)"
            + ("" if exact else "; an upper estimate, since of large matrices only leading vectors are compared")
        )
    return tuple(notes)
