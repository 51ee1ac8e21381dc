"""The divergences, each registered once: the choices of `distillation.divergence` are the names of this table.

It can be read without torch; the code of a divergence is imported when it is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from entrenar_core.losses.divergence import Core


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table. p is the teacher's distribution, q the student's.

    `home` is the module of its core; `parameters` are those that the core is made with, and what they are by default.
    """

    name: str
    formula: str
    source: str
    parameters: Mapping[str, float | bool] = field(default_factory=dict)
    home: str = "divergence"

    def make(self, **parameters: float | bool) -> "Core":
        """Its core.

        Raises:
            ValueError: a parameter is out of its range.
        """
        found = getattr(import_module(f"entrenar_core.losses.{self.home}"), f"{self.name}_core")
        return cast("Core", found(**parameters) if self.parameters else found)


_ROWS = (
    Entry("forward_kl", "KL(p ‖ q) = Σ p (log p − log q)", "Hinton, Vinyals & Dean 2015"),
    Entry("reverse_kl", "KL(q ‖ p)", "Gu et al. 2024 (MiniLLM)"),
    Entry("jeffreys", "forward · KL(p ‖ q) + reverse · KL(q ‖ p)", "Jeffreys 1946", {"forward": 0.5, "reverse": 0.5}),
    Entry(
        "jsd",
        "β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q",
        "Agarwal et al. 2024 (GKD)",
        {"beta": 0.5, "normalised": False},
    ),
    Entry("skew_forward_kl", "KL(p ‖ λ p + (1 − λ) q)", "Ko et al. 2024 (DistiLLM)", {"skew": 0.1}),
    Entry("skew_reverse_kl", "KL(q ‖ λ q + (1 − λ) p)", "Ko et al. 2024 (DistiLLM)", {"skew": 0.1}),
    Entry(
        "bild",
        "KL of softmaxed differences of the likeliest logits",
        "Li et al. 2024 (BiLD)",
        {"top_k": 8},
        home="logit_differences",
    ),
    Entry("total_variation", "½ Σ |p − q|", "Wen et al. 2023 (f-distill)"),
    Entry("cross_entropy_hard", "−log q(argmax p)", "Touvron et al. 2021 (DeiT)"),
)

DIVERGENCES: Mapping[str, Entry] = {row.name: row for row in _ROWS}
