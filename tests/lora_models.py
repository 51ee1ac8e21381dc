"""Adapters as peft makes them on tiny models, with random numbers in place of training, and what peft answers with."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from entrenar_core.adapters.combining import Combination
from entrenar_core.adapters.merging import write_merged
from entrenar_core.adapters.planning import plan_merge
from entrenar_core.adapters.reading import open_adapter
from entrenar_core.adapters.results import MergeReport
from entrenar_core.references import PathReference
from entrenar_core.stored_model import open_model

AUTO: dict[str, Any] = {
    "causal": AutoModelForCausalLM,
    "classifies": AutoModelForSequenceClassification,
    "body": AutoModel,
}
IDS = torch.tensor([[5, 9, 23, 42, 7, 88, 130, 11, 3, 77]])


def load(folder: Path, kind: str = "causal", **settings: Any) -> Any:
    """The model of a folder in float64, so that sums in another order are no difference."""
    return AUTO[kind].from_pretrained(folder, dtype=torch.float32, **settings).double().eval()


def shake(model: Any, seed: int, size: float = 0.2) -> None:
    """Random numbers for whatever is trained, as after some steps."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * size
                old = parameter.double()
                parameter.copy_((old * (1 + noise) if "magnitude" in name else old + noise).to(parameter.dtype))


def train(folder: Path, output: Path, kind: str = "causal", *, seed: int = 1, size: float = 0.2, **lora: Any) -> Path:
    """An adapter of the model in a folder, saved by peft."""
    settings: dict[str, Any] = {}
    if kind == "classifies":
        settings["num_labels"] = lora.pop("num_labels", 3)
    model = AUTO[kind].from_pretrained(folder, dtype=torch.float32, **settings)
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, LoraConfig(**lora))
        shake(wrapped, seed, size)
        wrapped.save_pretrained(output)
    return output


def _quiet() -> Any:
    import warnings

    found = contextlib.ExitStack()
    found.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    return found


def answers(model: Any, ids: Tensor = IDS) -> Tensor:
    """Logits, or the hidden states of a bare body."""
    with torch.no_grad():
        out = model(ids)
    return (out.logits if "logits" in out else out.last_hidden_state).double()


def by_peft(folder: Path, adapter: Path, kind: str = "causal", **settings: Any) -> Tensor:
    """What base and adapter answer. peft begins PiSSA and OLoRA of float32 only."""
    base = AUTO[kind].from_pretrained(folder, dtype=torch.float32, **settings)
    with _quiet():
        return answers(PeftModel.from_pretrained(base, adapter).double().eval())


def merged(
    base: Path, adapters: Sequence[Path], output: Path, weights: Sequence[float] = (), how: Combination | None = None,
    **options: Any,
) -> MergeReport:  # fmt: skip
    """Merges adapters, each with its weight, into the model of a folder."""
    with open_model(PathReference(str(base))) as model:
        opened = [open_adapter(PathReference(str(adapter))) for adapter in adapters]
        plan = plan_merge(model, list(zip(opened, weights or [1.0] * len(opened), strict=True)), how)
        return write_merged(plan, output, **options)
