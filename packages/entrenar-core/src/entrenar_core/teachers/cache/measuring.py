"""How far what is kept of a teacher is from the teacher: in KL, and in the direction of the gradient that it gives.

The student of the measurement is the teacher itself with noise on its logits: as far from the teacher as a student that
has learnt something, and the same for every cache.

Shapes: N positions, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from entrenar_core.losses.divergence import forward_kl_core, value_and_gradient
from entrenar_core.losses.sums import at_least_fp32
from entrenar_core.losses.targets import HeadRows, Logits, Targets
from entrenar_core.models.recording import Record
from entrenar_core.models.rows import Rows
from entrenar_core.teachers.cache.draws import Sampled
from entrenar_core.teachers.cache.keeping import Asks
from entrenar_core.teachers.cache.kinds import Values
from entrenar_core.teachers.cache.planning import CachePlan, PlannedRow, collated
from entrenar_core.teachers.cache.reader import Reader
from entrenar_core.teachers.cache.teacher import CachedTeacher

MOST_ROWS = 32
FEW_ROWS = 8
"""Of a server, which may tell one position at a time."""
NOISE = 0.5
"""The standard deviation of the noise, in nats."""
_TILE = 64


@torch.no_grad()
def measure(
    reader: Reader, cached: CachedTeacher, plan: CachePlan, texts: Sequence[str], *, seed: int = 0
) -> dict[str, Any]:
    """On some rows, evenly from the first to the last of the plan, so from the shortest to the longest.

    Of distributions over tokens, `kl`: of the student from what is kept, less that from the live teacher, on average,
    in nats; and `kl_live`, which it is to be compared with. `gradient_angle`: between the gradients of a forward KL in
    the logits, of all positions together, in degrees; `position_angle`: of each position, on average. `seed` is that of
    the noise.

    Of other numbers, `error`: the root of the mean square of what is kept less what the live teacher says, over that of
    the latter; and of layers likewise `layers_error`.
    """
    everything = list(plan.rows)
    rows = everything[:: max(1, len(everything) // MOST_ROWS)][:MOST_ROWS]
    read = [row for row in rows if row.split != "texts"]
    told = _of_layers(reader, cached, read) if cached.layers is not None else {}
    if isinstance(cached.kind, Values):
        return _of_values(reader, cached, rows, texts) | told
    return _of_distributions(reader, cached, read, seed) | told


def ask_again(reader: Asks, cached: CachedTeacher, plan: CachePlan) -> dict[str, Any]:
    """Of a teacher that tells the likeliest tokens alone: on some rows, `error` of their log-probabilities when it is
    asked once more, as of `measure`, and `left_out`, the probability that all other tokens have on average.
    """
    everything = list(plan.rows)
    rows = everything[:: max(1, len(everything) // FEW_ROWS)][:FEW_ROWS]
    pairs, left_out = [], []
    for row in rows:
        (again,) = reader.read([row], ())
        place = cached.store.place(row.key)
        assert place is not None, "just built"
        kept = cached.store.read(place)
        same = np.asarray(again["tokens"] == kept["tokens"])  # of which the order may be another where they are close
        pairs.append((again["log_p"][same].astype(np.float32), kept["log_p"][same].astype(np.float32)))
        left_out.append(np.exp(kept["rest"][:, 0]))
    return {"rows": len(rows), "error": _error(pairs), "left_out": float(np.concatenate(left_out).mean())}


def _of_distributions(reader: Reader, cached: CachedTeacher, read: Sequence[PlannedRow], seed: int) -> dict[str, Any]:
    temperature = cached.kind.temperature if isinstance(cached.kind, Sampled) else 1.0
    sums = torch.zeros(5, dtype=torch.float64)
    count, angle = 0, 0.0
    generator = torch.Generator().manual_seed(seed)
    for live, kept in _distributions(reader, cached, read):
        for start in range(0, len(live), _TILE):
            tile = slice(start, min(start + _TILE, len(live)))
            logits_NV = at_least_fp32(live.of(tile))
            noise_NV = torch.randn(logits_NV.shape, generator=generator).to(logits_NV.device)
            student_NV = (logits_NV + NOISE * noise_NV) / temperature
            of_live, of_kept = (
                _gradient(source, student_NV, rows, temperature)
                for source, rows in ((Logits(logits_NV), slice(0, len(logits_NV))), (kept, tile))
            )
            dots_N = (of_live[1] * of_kept[1]).sum(-1)
            norms_N = of_live[1].norm(dim=-1) * of_kept[1].norm(dim=-1)
            angle += float(torch.rad2deg((dots_N / norms_N.clamp_min(1e-30)).clamp(-1, 1).acos()).sum())
            squares = [gradient_NV.square().sum(-1) for _, gradient_NV in (of_live, of_kept)]
            parts = [of_kept[0] - of_live[0], of_live[0], dots_N, *squares]
            sums += torch.stack([values.double().sum().cpu() for values in parts])
            count += len(logits_NV)
    kl, kl_live, dot, live2, kept2 = sums.tolist()
    cosine = dot / max(math.sqrt(live2 * kept2), 1e-300)
    return {
        "positions": count,
        "noise": NOISE,
        "temperature": temperature,
        "kl": kl / max(count, 1),
        "kl_live": kl_live / max(count, 1),
        "gradient_angle": math.degrees(math.acos(max(-1.0, min(1.0, cosine)))),
        "position_angle": angle / max(count, 1),
    }


def _gradient(teacher: Targets, student_NV: Tensor, rows: slice, temperature: float) -> tuple[Tensor, Tensor]:
    tiles = teacher.tiles(student_NV.shape[-1])
    tiles.load(rows)
    return value_and_gradient(
        lambda log_q_NV: tiles.local(forward_kl_core, log_q_NV, slice(None), temperature), student_NV
    )


def _distributions(reader: Reader, cached: CachedTeacher, read: Sequence[PlannedRow]) -> Iterator[tuple[Rows, Targets]]:
    """What the teacher says of some rows, and what the cache says of them."""
    assert reader.says is not None, "distributions over tokens are of tokens that both read"
    for row in read:
        batch = collated(reader.prepared, [row]).to(reader.accelerator.device)
        live = reader.says(batch).rows
        assert isinstance(live, Logits | HeadRows), "a live teacher says all it knows"
        yield live, cached.rows(batch)


def _of_values(
    reader: Reader, cached: CachedTeacher, rows: Sequence[PlannedRow], texts: Sequence[str]
) -> dict[str, Any]:
    pairs = []
    for row in rows:
        (live,) = reader.read([row], texts)
        place = cached.store.place(row.key)
        assert place is not None, "just built"
        pairs.append((live["values"], cached.store.read(place)["values"]))
    return {"rows": len(rows), "error": _error(pairs)}


def _of_layers(reader: Reader, cached: CachedTeacher, read: Sequence[PlannedRow]) -> dict[str, float]:
    assert cached.layers is not None
    assert reader.says is not None
    says, pairs = cached.listening(cached.layers.wants), []
    for row in read:
        batch = collated(reader.prepared, [row]).to(reader.accelerator.device)
        live, kept = (_tensors(source(batch).record) for source in (reader.says, says))
        pairs += [
            (one.float().cpu().numpy(), other.float().cpu().numpy()) for one, other in zip(live, kept, strict=True)
        ]
    return {"layers_error": _error(pairs)}


def _tensors(record: Record | None) -> list[Tensor]:
    assert record is not None, "it was asked for"
    found = [states for _, states in sorted(record.hidden.items())]
    for _, inputs in sorted(record.attention.items()):
        found += [inputs.queries_BHTd, inputs.keys_BGTd, inputs.values_BGTd]
    return found if record.embeddings is None else [record.embeddings, *found]


def _error(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    wrong = sum(float(np.square(live - kept, dtype=np.float64).sum()) for live, kept in pairs)
    whole = sum(float(np.square(live, dtype=np.float64).sum()) for live, _ in pairs)
    return math.sqrt(wrong / whole) if whole else 0.0
