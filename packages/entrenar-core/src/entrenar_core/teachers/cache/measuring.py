"""How far what is kept of a teacher is from the teacher: in KL, and in the direction of the gradient that it gives.

The student of the measurement is the teacher itself with noise on its logits: as far from the teacher as a student that
has learnt something, and the same for every cache.

Shapes: N positions, V vocabulary.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from entrenar_core.losses.divergence import forward_kl_core, value_and_gradient
from entrenar_core.losses.sums import at_least_fp32
from entrenar_core.losses.targets import Logits, Targets
from entrenar_core.teachers.cache.draws import Sampled
from entrenar_core.teachers.cache.planning import CachePlan, collated
from entrenar_core.teachers.cache.teacher import CachedTeacher
from entrenar_core.teachers.live import LiveTeacher

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation

MOST_ROWS = 32
NOISE = 0.5
"""The standard deviation of the noise, in nats."""
_TILE = 64


@torch.no_grad()
def measure(prepared: "Preparation", teacher: LiveTeacher, cached: CachedTeacher, plan: CachePlan) -> dict[str, Any]:
    """On some rows, evenly from the shortest to the longest:

    `kl`: of the student from what is kept, less that from the live teacher, on average, in nats; and `kl_live`, which
    it is to be compared with. `gradient_angle`: between the gradients of a forward KL in the logits, of all positions
    together, in degrees; `position_angle`: of each position, on average.
    """
    temperature = cached.kind.temperature if isinstance(cached.kind, Sampled) else 1.0
    sums = torch.zeros(5, dtype=torch.float64)
    count, angle = 0, 0.0
    generator = torch.Generator().manual_seed(0)
    for live, kept in _rows(prepared, teacher, cached, plan):
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


def _rows(
    prepared: "Preparation", teacher: LiveTeacher, cached: CachedTeacher, plan: CachePlan
) -> Iterator[tuple[Any, Targets]]:
    """What the teacher says of some rows, and what the cache says of them."""
    everything = list(plan.rows)
    for row in everything[:: max(1, len(everything) // MOST_ROWS)][:MOST_ROWS]:
        batch = collated(prepared, [row]).to(teacher.accelerator.device)
        yield teacher.rows(batch), cached.rows(batch)
