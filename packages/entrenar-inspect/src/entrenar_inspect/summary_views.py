"""How a model looks at a glance."""

import json
from typing import Any

from entrenar_common.output import Block
from entrenar_common.tables import Amount, Cell, Table, key_values
from entrenar_core.architectures.agreement import either
from entrenar_core.units import count, size
from entrenar_inspect.reports.summary import (
    AdapterSummary,
    DtypeShare,
    Experts,
    ModelPart,
    ModelSummary,
    Rope,
    TokenizerSummary,
)

_MOST_FILES = 3
_LONGEST = 60


def summary(report: ModelSummary) -> list[Block]:
    """What it is, what it is stored in, and what its file says of itself."""
    several = f" in {len(report.files)} files" if len(report.files) > 1 else ""
    facts: dict[str, Cell] = {
        "Architecture": _architecture(report),
        **({} if report.adapter is None else _adapter(report.adapter)),
        "Parameters": _number(report.parameters),
        **_embedding(report),
        **({} if report.experts is None else _experts(report.experts)),
        "Layers": _layers(report),
        **_widths(report),
        **{part.name.capitalize(): _part(part) for part in report.parts},
        "Vocabulary": report.vocab_size,
        "Positions": report.max_positions,
        "Rotary positions": None if report.rope is None else _rope(report.rope),
        "Sliding window": report.sliding_window,
        "Tied weights": ", ".join(f"{name} is {other}" for name, other in report.tied) or None,
        "Tokenizer": None if report.tokenizer is None else _tokenizer(report.tokenizer),
        "Quantisation": report.quantisation,
        "Licence": report.license,
        "Tensors": report.tensors,
        "Dtypes": _dtypes(report.dtypes),
        "Format": report.format + (f", commit {report.commit[:12]}" if report.commit else ""),
        "Size": Amount(report.file_bytes, size(report.file_bytes) + several),
    }
    known = {name: value for name, value in facts.items() if value not in (None, "")}
    blocks: list[Block] = [key_values(f"Model: {report.name}", known, tuple(f"! {line}" for line in report.warnings))]
    if report.metadata:
        blocks.append(_metadata(report))
    return blocks


def _number(parameters: int) -> Amount:
    return Amount(parameters, f"{parameters:,} ({count(parameters)})")


def _architecture(report: ModelSummary) -> str:
    name = report.family or report.model_type
    if name is None:
        return "unknown" if report.adapter is None else "adapter"
    told = report.classes or tuple(f"with {head}" for head in report.heads)
    by_tensors = either(report.families) if report.model_type is None and report.families else name
    inside = ", ".join((*told, *(() if report.variant is None else (report.variant,))))
    other = report.model_type is not None and report.families and name != report.families[0]
    alike = f", its tensors laid out like those of {report.families[0]}" if other else ""
    return (f"{by_tensors} ({inside})" if inside else by_tensors) + alike


def _layers(report: ModelSummary) -> Cell:
    layers = [part.num_layers for part in report.parts] or [report.num_layers, report.decoder_layers]
    return " + ".join(str(number) for number in layers if number is not None)


def _widths(report: ModelSummary) -> dict[str, Cell]:
    """Those that the parts of a model do not have each for itself."""
    parts = report.parts
    return {
        "Hidden size": report.hidden_size if len({part.hidden_size for part in parts}) < 2 else None,
        "Attention heads": _heads(report) if len({(part.num_heads, part.hidden_size) for part in parts}) < 2 else None,
        "Feed-forward size": report.intermediate_size if len({part.intermediate_size for part in parts}) < 2 else None,
    }


def _part(part: ModelPart) -> str:
    told = (
        (part.num_layers, "{:,} layers"),
        (part.hidden_size, "hidden size {:,}"),
        (part.num_heads, "{:,} heads"),
        (part.intermediate_size, "feed-forward size {:,}"),
    )
    return ", ".join(wording.format(value) for value, wording in told if value is not None)


def _rope(rope: Rope) -> str:
    theta = "" if rope.theta is None else f"θ = {rope.theta:,.12g}"
    factor = "" if rope.factor is None else f" by {rope.factor:g}"
    stretched = "" if rope.scaling is None else f"stretched{factor} ({rope.scaling})"
    return ", ".join(filter(None, (theta, stretched)))


def _embedding(report: ModelSummary) -> dict[str, Cell]:
    return {} if report.embedding_parameters is None else {"Of these embeddings": _number(report.embedding_parameters)}


def _experts(experts: Experts) -> dict[str, Cell]:
    used = "" if experts.per_token is None else f", {experts.per_token} for each token"
    told: dict[str, Cell] = {
        "Experts": f"{experts.per_layer} in a layer{used}, of {count(experts.parameters_each)} parameters each",
        "Of these in experts": _number(experts.parameters),
    }
    if experts.active_parameters is not None:
        told["Active for a token"] = _number(experts.active_parameters)
    return told


def _heads(report: ModelSummary) -> str | None:
    if report.num_heads is None:
        return None
    shared = report.num_kv_heads
    keys = f", {shared} for keys and values" if shared is not None and shared != report.num_heads else ""
    return f"{report.num_heads}{keys}{f', each {report.head_dim} wide' if report.head_dim else ''}"


def _tokenizer(found: TokenizerSummary) -> str:
    kind = found.kind or found.file
    tokens = "" if found.tokens is None else f", {found.tokens:,} tokens"
    return f"{kind}{tokens}{', chat template' if found.chat_template else ''}"


def _adapter(found: AdapterSummary) -> dict[str, Cell]:
    alpha = "" if found.alpha is None else f", alpha {found.alpha:g}"
    scale = "" if found.scale is None else f", scale {found.scale:g}"
    rank = f", rank {' to '.join(map(str, _ends(found.ranks)))}" if found.ranks else ""
    return {
        "Adapter": f"{found.method}{rank}{alpha}{scale}",
        "Changes": f"{found.modules} matrices: {', '.join(found.targets)}" if found.modules else None,
        "Base model": found.base_model,
    }


def _ends(ranks: tuple[int, ...]) -> tuple[int, ...]:
    return ranks if len(ranks) < 2 else (ranks[0], ranks[-1])


def _dtypes(shares: tuple[DtypeShare, ...]) -> str:
    if len(shares) == 1:
        return shares[0].dtype
    return ", ".join(f"{share.dtype} ({count(share.values)} in {_tensors(share.tensors)})" for share in shares)


def _tensors(number: int) -> str:
    return "1 tensor" if number == 1 else f"{number:,} tensors"


def _metadata(report: ModelSummary) -> Table:
    return Table("Metadata", ("", ""), tuple((key, _said(value)) for key, value in report.metadata.items()))


def _said(value: Any) -> str:
    """A value of metadata in a few words; floats with the digits that 32 bits have."""
    if isinstance(value, float):
        return f"{value:.7g}"
    if isinstance(value, list | tuple):
        value = ", ".join(map(_said, value))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
