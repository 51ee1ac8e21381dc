"""What trains in place of all weights: adapters of every kind that peft makes and entrenar trains, and how the weights
that stay are held.

Sources of the methods are in `METHODS`; how each becomes peft's own settings is in models/peft_settings.py.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from entrenar_core.config.types import Count, Positive, Probability, Section, Switch, Text, Texts

TargetGroup = Literal["attention", "query-value", "all-linear"]
Initialisation = Literal["default", "gaussian", "orthogonal", "pissa", "olora", "eva"]
DtypeName = Literal["float32", "bfloat16", "float16"]
USUAL_RANK = 16
"""Of adapters, where none is said."""
USUAL_ALPHA = 16.0
GROUPS: tuple[TargetGroup, ...] = ("attention", "query-value", "all-linear")


def _targets(value: object) -> object:
    """One message for both forms, where a union would report the failure of each."""
    if isinstance(value, str) and value in GROUPS:
        return value
    named = isinstance(value, list | tuple) and value and all(isinstance(one, str) and one for one in value)
    if not named:
        raise ValueError(f"should be a list of modules such as [q_proj, v_proj], or one of {', '.join(GROUPS)}")
    return value


def _pattern(value: object) -> object:
    if isinstance(value, dict):
        for key in value:
            try:
                re.compile(str(key))
            except re.error as error:
                raise ValueError(f"has the name {key!r}, which is no regular expression: {error}") from None
    return value


Targets = Annotated[TargetGroup | tuple[Text, ...], BeforeValidator(_targets)]
Pattern = BeforeValidator(_pattern)


class LoraSettings(Section):
    """Low-rank matrices beside frozen ones: W + s·B·A, with s = alpha ÷ rank."""

    rank: Count = Field(USUAL_RANK, description="Rows of A, and columns of B.")
    alpha: Positive = Field(USUAL_ALPHA, description="The product of A and B is multiplied by alpha ÷ rank.")
    target_modules: Targets = Field(
        "attention",
        title="a list of modules such as [q_proj, v_proj], or attention, query-value or all-linear",
        description="Which matrices get adapters: by their last names, or a group that the family's table knows.",
    )
    dropout: Probability = Field(0.0, description="Of what an adapter reads, in training.")
    rslora: Switch = Field(False, description="Multiply by alpha ÷ √rank instead (rank-stabilised).")
    dora: Switch = Field(False, description="Train the length of each row of W + s·B·A by itself (weight-decomposed).")
    init: Initialisation = Field(
        "default",
        description="What A and B start as: default (Kaiming and zero), gaussian, orthogonal; pissa or olora, the "
        "principal part of W by SVD or QR, which is then taken out of it; or eva, the principal directions of what the "
        "layer reads in training rows.",
    )
    biases: Literal["none", "all", "lora_only"] = Field(
        "none", description="Which biases train: none, all of the model, or those of layers with adapters."
    )
    modules_to_save: Texts | None = Field(None, description="Modules that train as a whole and are saved so.")
    rank_pattern: Annotated[dict[str, Count], Pattern] = Field(
        {}, title="a table such as {q_proj: 8}", description="Other ranks of modules, by regular expressions."
    )
    alpha_pattern: Annotated[dict[str, Positive], Pattern] = Field(
        {}, title="a table such as {q_proj: 32}", description="Other alphas of modules, by regular expressions."
    )
    layers: tuple[int, ...] | None = Field(
        None,
        title="a list of layer indices such as [0, 1]",
        description="Only layers of these indices; all if not given.",
    )
    lora_plus_ratio: Positive | None = Field(
        None, description="Learning rate of B in place of the others', as a multiple (LoRA+)."
    )


class StudentLora(LoraSettings):
    """Trains low-rank adapters of the student in place of all of its weights."""

    enabled: Switch = Field(True, description="Off: all weights are trained.")


class LoraAdapter(LoraSettings):
    """Low-rank matrices beside frozen ones: W + s·B·A, with s = alpha ÷ rank."""

    method: Literal["lora"] = "lora"


class Ia3Adapter(Section):
    """A factor for each number that keys, values and feed-forward layers give."""

    method: Literal["ia3"]
    target_modules: Texts | None = Field(None, description="Modules that get factors; the family's, if not given.")
    feedforward_modules: Texts | None = Field(
        None, description="Those of them whose input is multiplied instead of their output."
    )


class PromptAdapter(Section):
    """Trained vectors in front of the embeddings of each row."""

    method: Literal["prompt"]
    virtual_tokens: Count = Field(20, description="How many.")


class PrefixAdapter(Section):
    """Trained keys and values in front of those of each row, in every layer."""

    method: Literal["prefix"]
    virtual_tokens: Count = Field(20, description="How many.")


class BiasAdapter(Section):
    """A trained bias on what value projections give."""

    method: Literal["bias"]
    target_modules: Texts | None = Field(None, description="Modules that get a bias; the family's, if not given.")


class AdaptionPromptAdapter(Section):
    """Trained vectors that the attention of upper layers reads beside its own, through a gate that opens from zero."""

    method: Literal["adaption-prompt"]
    virtual_tokens: Count = Field(10, description="How many a layer.")
    layers: Count | None = Field(None, description="In how many layers from the top; in all if not given.")


METHODS: dict[str, tuple[type[Section], str]] = {
    "lora": (LoraAdapter, "E. Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv:2106.09685"),
    "ia3": (
        Ia3Adapter,
        "H. Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, 2022, "
        "arXiv:2205.05638",
    ),
    "prompt": (
        PromptAdapter,
        "B. Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning, 2021, arXiv:2104.08691",
    ),
    "prefix": (
        PrefixAdapter,
        "X. L. Li, P. Liang, Prefix-Tuning: Optimizing Continuous Prompts for Generation, 2021, arXiv:2101.00190",
    ),
    "bias": (
        BiasAdapter,
        "after E. Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked "
        "Language-models, 2021, arXiv:2106.10199, as peft's BEFT has it",
    ),
    "adaption-prompt": (
        AdaptionPromptAdapter,
        "R. Zhang et al., LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention, 2023, "
        "arXiv:2303.16199",
    ),
}
"""Every method with its settings and its source."""


def _method(value: Any) -> str:
    """LoRA, where a section does not say."""
    return str(value.get("method", "lora") if isinstance(value, dict) else getattr(value, "method", "lora"))


Adapter = Annotated[
    Annotated[LoraAdapter, Tag("lora")]
    | Annotated[Ia3Adapter, Tag("ia3")]
    | Annotated[PromptAdapter, Tag("prompt")]
    | Annotated[PrefixAdapter, Tag("prefix")]
    | Annotated[BiasAdapter, Tag("bias")]
    | Annotated[AdaptionPromptAdapter, Tag("adaption-prompt")],
    Discriminator(_method),
]
AnyAdapter = LoraSettings | Ia3Adapter | PromptAdapter | PrefixAdapter | BiasAdapter | AdaptionPromptAdapter
"""What a model is adapted by; that of a student is LoRA without a method."""


class Quantization(Section):
    """How frozen weights are held: their linear layers quantised with bitsandbytes as the model is loaded."""

    bits: Literal[4, 8] = Field(4, description="Of a weight.")
    type: Literal["nf4", "fp4", "int4", "int8"] | None = Field(
        None, description="What 4 bits stand for: nf4 (if not given) or fp4; 8 bits are int8."
    )
    group_size: Count = Field(64, description="Weights that share a scale in 4 bits; bitsandbytes has 64.")
    double_quantization: Switch = Field(True, description="Quantise the scales of 4 bits too.")
    compute_dtype: DtypeName | None = Field(
        None, description="What layers of 4 bits compute in; `dtype`, if not given."
    )

    @property
    def load_in(self) -> Literal["nf4", "fp4", "int8"]:
        """What bitsandbytes calls it; a rule refuses what it does not have."""
        if self.bits == 8:
            return "int8"
        return "fp4" if self.type == "fp4" else "nf4"
