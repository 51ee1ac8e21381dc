"""Adapters as peft saves them, of random values so large that each of them matters, over the tiny models."""

from pathlib import Path
from typing import Any


def saved_adapter(
    folder: Path, base: Path, *, seed: int = 0, auto: str = "AutoModelForCausalLM", spread: float = 0.3, **settings: Any
) -> Path:
    """An adapter of peft's for the model in `base`; a further keyword is a setting of LoraConfig."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    config = {"r": 4, "lora_alpha": 8, **settings}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, auto).from_pretrained(base, dtype=torch.float32)
        tuned = get_peft_model(model, LoraConfig(**config))
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.data.normal_(std=spread)
            if "magnitude" in name:
                weight.data.abs_().add_(0.5)
    tuned.save_pretrained(folder)
    return folder


def last_log_probabilities(base: Path, adapter: Path | None, rows: list[list[int]]) -> list[list[float]]:
    """What transformers, with peft, expects after each row of tokens: for every token its log probability."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        return [model.eval()(torch.tensor([row])).logits[0, -1].log_softmax(-1).tolist() for row in rows]
