"""The divergences, each registered once: the choices of `distillation.divergence` are the names of this table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from entrenar_core.losses.divergence import (
    Core,
    cross_entropy_hard_core,
    forward_kl_core,
    jeffreys_core,
    jsd_core,
    reverse_kl_core,
    skew_forward_kl_core,
    skew_reverse_kl_core,
    total_variation_core,
)
from entrenar_core.losses.logit_differences import bild_core


@dataclass(frozen=True, slots=True)
class Divergence:
    """A row of the table. `make` takes the divergence's own parameters."""

    formula: str
    citation: str
    make: Callable[..., Core]


DIVERGENCES: Mapping[str, Divergence] = {
    "forward_kl": Divergence("Σ p (log p − log q)", "Hinton, Vinyals & Dean 2015", lambda: forward_kl_core),
    "reverse_kl": Divergence("Σ q (log q − log p)", "Gu et al. 2024, MiniLLM", lambda: reverse_kl_core),
    "jeffreys": Divergence("forward · KL(p ‖ q) + reverse · KL(q ‖ p)", "Jeffreys 1946", jeffreys_core),
    "jsd": Divergence("β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q", "Agarwal et al. 2024, GKD", jsd_core),
    "skew_forward_kl": Divergence("KL(p ‖ λ p + (1 − λ) q)", "Ko et al. 2024, DistiLLM", skew_forward_kl_core),
    "skew_reverse_kl": Divergence("KL(q ‖ λ q + (1 − λ) p)", "Ko et al. 2024, DistiLLM", skew_reverse_kl_core),
    "bild": Divergence("KL of softmaxed differences of the k largest logits, both ways", "Li et al. 2024", bild_core),
    "total_variation": Divergence("½ Σ |p − q|", "Wen et al. 2023", lambda: total_variation_core),
    "cross_entropy_hard": Divergence("−log q(argmax p)", "Touvron et al. 2021, DeiT", lambda: cross_entropy_hard_core),
}
