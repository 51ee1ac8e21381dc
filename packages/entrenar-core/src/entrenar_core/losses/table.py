"""The divergences, each registered once: the choices of `distillation.divergence` are the names of this table."""

from collections.abc import Mapping

from entrenar_core.losses.divergence import Divergence, forward_kl

DIVERGENCES: Mapping[str, Divergence] = {"forward_kl": forward_kl}
