"""The losses, each registered once: the names of entries of `distillation.losses` are the names of this table.

It can be read without torch; the code of a loss is imported when it is made.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from entrenar_core.losses.divergence import Core

Family = Literal["labels", "logits", "hidden", "attention", "relations", "vectors"]
Scope = Literal["token", "sequence", "group"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table. p is the teacher's distribution, q the student's; s and t are vectors of both.

    `needs` is what both models must give. `scope` says what belongs together: what is cut between tokens or between
    sequences changes no gradient, or only between groups of rows, of which each must have `least` examples (the
    unbiased CKA divides by n − 3; of a single other example, a distribution is always the same). `home` is
    the module of its code; `parameters` are those of a divergence's core, and what they are by default. At a
    temperature T a divergence is multiplied by T to its `power` (`soften`). `known` is how much of the teacher's
    distribution it must know: draws from it, its likeliest tokens with what the others have together, or all.
    """

    name: str
    formula: str
    source: str
    family: Family
    needs: str
    scope: Scope
    home: str
    parameters: Mapping[str, float | bool] = field(default_factory=dict)
    least: int = 1
    power: int = 2
    known: Literal["draws", "likeliest", "all"] = "likeliest"

    def make(self, **parameters: float | bool) -> "Core":
        """The core of a divergence.

        Raises:
            ValueError: a parameter is out of its range.
        """
        assert self.family == "logits", "only divergences have a core"
        found = getattr(import_module(f"entrenar_core.losses.{self.home}"), f"{self.name}_core")
        return cast("Core", found(**parameters) if self.parameters else found)


_divergence = partial(Entry, family="logits", needs="logits", scope="token", home="divergence")
_hidden = partial(Entry, family="hidden", needs="hidden states", home="hidden")
_attention = partial(Entry, family="attention", needs="attention scores", scope="token", home="attention")
_relation = partial(Entry, family="relations", needs="hidden states", scope="group", home="relations")

_vectors = partial(Entry, family="vectors", needs="sentence vectors", scope="sequence", home="embedding")

_ROWS = (
    Entry("cross_entropy", "−log q(label)", "", family="labels", needs="labels", scope="token", home="hard"),
    _divergence("forward_kl", "KL(p ‖ q) = Σ p (log p − log q)", "Hinton, Vinyals & Dean 2015", known="draws"),
    _divergence("reverse_kl", "KL(q ‖ p)", "Gu et al. 2024 (MiniLLM)"),
    _divergence(
        "jeffreys",
        "forward · KL(p ‖ q) + reverse · KL(q ‖ p)",
        "Jeffreys 1946",
        parameters={"forward": 0.5, "reverse": 0.5},
    ),
    _divergence(
        "jsd",
        "β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = β p + (1 − β) q",
        "Agarwal et al. 2024 (GKD)",
        parameters={"beta": 0.5, "normalised": False},
    ),
    _divergence("skew_forward_kl", "KL(p ‖ λ p + (1 − λ) q)", "Ko et al. 2024 (DistiLLM)", parameters={"skew": 0.1}),
    _divergence("skew_reverse_kl", "KL(q ‖ λ q + (1 − λ) p)", "Ko et al. 2024 (DistiLLM)", parameters={"skew": 0.1}),
    _divergence(
        "bild",
        "KL of softmaxed differences of the likeliest logits",
        "Li et al. 2024 (BiLD)",
        parameters={"top_k": 8},
        known="all",
        home="logit_differences",
    ),
    _divergence("total_variation", "½ Σ |p − q|", "Wen et al. 2023 (f-distill)", power=1),
    _divergence("cross_entropy_hard", "−log q(argmax p)", "Touvron et al. 2021 (DeiT)", power=1),
    _hidden("hidden_mse", "mean (s − t)²", "Romero et al. 2015 (FitNets)", scope="token"),
    _hidden("hidden_cosine", "1 − cos(s, t)", "Sanh et al. 2019 (DistilBERT)", scope="token"),
    _hidden("patient", "‖s/‖s‖ − t/‖t‖‖²", "Sun et al. 2019 (Patient-KD)", scope="sequence"),
    _hidden("cka", "1 − CKA, unbiased", "Nguyen, Raghu & Kornblith 2021", scope="group", least=4),
    _attention(
        "attention_maps",
        "‖m_s/‖m_s‖ − m_t/‖m_t‖‖², m = Σ |x|^power",
        "Zagoruyko & Komodakis 2017",
        needs="hidden states",
        scope="sequence",
        home="hidden",
    ),
    _attention("attention_kl", "KL of attention distributions", "Wang et al. 2020 (MiniLM)"),
    _attention("attention_mse", "mean (s − t)² of scores before softmax", "Jiao et al. 2020 (TinyBERT)"),
    _relation(
        "minilm",
        "KL of softmax(x xᵀ/√d), x = queries, keys, values",
        "Wang et al. 2021 (MiniLMv2)",
        needs="queries, keys, values",
        scope="token",
        home="minilm",
    ),
    _relation("rkd_distance", "Huber of relative distances", "Park et al. 2019 (RKD)", least=2),
    _relation("rkd_angle", "Huber of cosines of angles", "Park et al. 2019 (RKD)", least=3),
    _relation("similarity_preserving", "‖G − G'‖²/N², rows of G of norm 1", "Tung & Mori 2019", least=2),
    _relation("in_batch_similarity", "KL of softmaxed cosines to other rows", "Passalis & Tefas 2018 (PKT)", least=3),
    _vectors("embedding_cosine", "1 − cos(s, t)", "Sanh et al. 2019 (DistilBERT)"),
    _vectors("embedding_mse", "mean (s − t)²", "Reimers & Gurevych 2020"),
)

LOSSES: Mapping[str, Entry] = {row.name: row for row in _ROWS}
DIVERGENCES: Mapping[str, Entry] = {row.name: row for row in _ROWS if row.family == "logits"}
