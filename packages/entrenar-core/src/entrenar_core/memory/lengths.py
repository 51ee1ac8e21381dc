"""What a long context takes, told from a few short ones, of models that compute it piece by piece.

A recurrence without a kernel of its own is a loop over tokens, or over pieces of 64, of which a long context has too
many to follow. What is in memory at a place of reading grows with the context at most as its square (scores, masks):
where four short contexts lie on a parabola, the long one does too. Where they do not, since another operation takes the
most from some length on, it goes on straight from the last two. Writing a token has no such loop, and is followed with
keys and values of the whole context.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from entrenar_core.errors import ModelError
from entrenar_core.memory.cache_layers import layer_kinds
from entrenar_core.memory.estimate import Moment, Trace
from entrenar_core.memory.generating import trace_inference
from entrenar_core.memory.jobs import InferenceJob
from entrenar_core.memory.steps import Layers

_PIECE = 64
_LEAST = 8
_PIECEWISE = "linear_num_value_heads"
_AT_ONCE = ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "conv_L_cache")
"""Settings of families whose layers with a state compute all pieces at once."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Contexts that are `followed`, at even steps, and the one that is `told` from them: as long as was asked, or
    longer up to a whole piece.
    """

    followed: tuple[int, int, int, int]
    told: int


def lengths_of(config: Mapping[str, Any], context: int) -> Lengths | None:
    """Which contexts tell of a longer one; None where it is followed as it is."""
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        return lengths_of(inner, context)
    if not _has_states(config) or config.get("model_type") == "mamba2":
        return None
    if any(config.get(setting) is not None for setting in _AT_ONCE):
        return None
    piece, least = (_PIECE, _PIECE) if config.get(_PIECEWISE) is not None else (1, _LEAST)
    if context <= 4 * least:
        return None
    return Lengths((least, 2 * least, 3 * least, 4 * least), -(-context // piece) * piece)


def _has_states(config: Mapping[str, Any]) -> bool:
    try:
        kinds = layer_kinds(config)
        return any("state" in kind for kind in kinds) and not any(kind.startswith("sliding") for kind in kinds)
    except ModelError:  # which kinds of layers it has is not known, so that it is followed
        return False


def trace_context(job: InferenceJob, layers: Layers | None, granularity: int = 1) -> Trace:
    """`trace_inference` of a context however long."""
    lengths = lengths_of(job.model.config.to_dict(), job.context)
    if lengths is None:
        return trace_inference(job, layers, granularity)
    short = {one: trace_inference(job, layers, granularity, followed=one) for one in lengths.followed}
    return stretched(short, lengths.told)


def stretched(traces: Mapping[int, Trace], context: int) -> Trace:
    """The trace of a context from those of four others, by their lengths, in which `decode` is that of the context."""
    steps = Fraction(context - max(traces), max(traces) - sorted(traces)[-2])
    tables = [{(one.phase, one.layer): one for one in trace.moments} for _, trace in sorted(traces.items())]
    last = traces[max(traces)]
    moments = tuple(
        moment
        if moment.phase == "decode"
        else _moved([table.get((moment.phase, moment.layer), moment) for table in tables], steps)
        for moment in last.moments
    )
    flops = _at([trace.flops for _, trace in sorted(traces.items())], steps, curved=True)
    return replace(last, moments=moments, flops=flops)


def _moved(found: Sequence[Moment], steps: Fraction) -> Moment:
    """A place in so many steps more."""
    keys = dict.fromkeys(key for moment in found for key in moment.held)
    values = {key: [moment.held.get(key, 0) for moment in found] for key in keys}
    curved = all(a - 3 * b + 3 * c - d == 0 for a, b, c, d in values.values())
    return replace(found[-1], held={key: _at(sizes, steps, curved=curved) for key, sizes in values.items()})


def _at(values: Sequence[int], steps: Fraction, *, curved: bool) -> int:
    """On the parabola through the last three, or the line through the last two."""
    before, left, right = values[-3:]
    bend = right - 2 * left + before if curved else 0
    return max(0, round(right + steps * (right - left) + bend * steps * (steps + 1) / 2))
