"""Whether a merged model answers as its base with the adapters beside it: both in transformers, in float32.

What the merged model stores is rounded, so that its logits differ a little. How much rounding of that size does is
measured: the changed weights are moved by random amounts of up to half the distance between neighbouring numbers of
their dtype, and the logits looked at again. A merge is right where it differs by no more than a few times that, and by
what another order of sums in float32 does.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entrenar_core.adapters.adapter import Adapter
from entrenar_core.adapters.planning import MergePlan
from entrenar_core.adapters.results import MergeCheck
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.formats.places import LocalPlace
from entrenar_core.models.quiet import mute_bitsandbytes, quietly

_TOKENS = 256
_TIMES = 4.0
"""How many times the difference by random rounding is allowed: errors that are no accident may add up."""
_SUMS = 1e-4
"""Of the largest logit: what another order of sums in float32 does, over some dozens of layers."""
_BITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}


@dataclass(frozen=True, slots=True)
class Checker:
    """Compares a merge with what peft computes. `adapters` are those of the plan, each with its weight, and `dtype` is
    what all weights were cast to, if they were.
    """

    plan: MergePlan
    adapters: Sequence[tuple[Adapter, float]]
    dtype: str | None = None

    def require_possible(self) -> None:
        """Refuses what peft does not compute, or not from these files.

        Raises:
            UsageError: it does not.
        """
        if not self.plan.combination.is_sum:
            raise UsageError(
                f"--verify compares with what peft adds up, and --combine {self.plan.combination.method} is no sum",
                "leave out --verify",
            )
        weighted = any(weight != 1.0 for _, weight in self.adapters)
        special = any(adapter.settings.dora or adapter.settings.init != "default" for adapter, _ in self.adapters)
        if weighted and special:
            raise UsageError(
                "--verify cannot weaken DoRA, PiSSA or OLoRA adapters as the merge does",
                "leave out --verify or --scale",
            )
        for adapter, _ in self.adapters:
            if adapter.model.adapter_config is None or not isinstance(adapter.model.place, LocalPlace):
                raise UsageError(
                    f"--verify loads {adapter.name} with peft, which needs its adapter_config.json",
                    "leave out --verify",
                )
        if len(self.adapters) > 1 and any(adapter.whole for adapter, _ in self.adapters):
            raise UsageError(
                "--verify cannot load several adapters with whole modules or biases at once", "leave out --verify"
            )
        if self.plan.base.config is None or self.plan.config is None:
            raise UsageError("--verify needs a base with its config.json", "name the folder of the model")

    def __call__(self, folder: Path) -> MergeCheck:
        """Of the merged model in a folder.

        Raises:
            ModelError: transformers or peft cannot load one of them.
        """
        place = self.plan.base.place
        assert isinstance(place, LocalPlace)
        inputs = _inputs(place.folder, self.plan.config or {})
        kind = _auto_class(self.plan.config or {})
        with _failing(f"the merged model of {self.plan.base.reference}"), quietly(), torch.no_grad():
            merged = kind.from_pretrained(folder, dtype=torch.float32).eval()
            found = _logits(merged, inputs)
            _round_at_random(merged, self._stored())
            moved = float((_logits(merged, inputs) - found).abs().max())
            del merged
        with _failing(f"{self.plan.base.reference} with its adapter"), quietly(), torch.no_grad():
            wanted = _logits(self._beside(kind, place.folder), inputs)
        largest = float(wanted.abs().max())
        agreement = float((wanted.argmax(-1) == found.argmax(-1)).double().mean())
        return MergeCheck(
            difference=float((wanted - found).abs().max()),
            allowed=_TIMES * moved + _SUMS * largest,
            largest_logit=largest,
            agreement=agreement,
            tokens=int(inputs["input_ids"].numel()),
        )

    def _stored(self) -> Mapping[str, torch.dtype]:
        """The dtype of each tensor that was rounded."""
        from entrenar_core.adapters.target_changes import TORCH_DTYPES

        found = {name: target.tensor.dtype.name for name, target in self.plan.targets.items()}
        if self.dtype is not None:
            every = (self.plan.prefix + name for name in self.plan.base.tensors)
            found |= dict.fromkeys((*every, *found), self.dtype)
        return {name: TORCH_DTYPES[dtype] for name, dtype in found.items() if dtype in TORCH_DTYPES}

    def _beside(self, kind: Any, folder: Path) -> Any:
        """The base with its adapters, by peft."""
        mute_bitsandbytes()
        from peft import PeftModel
        from peft.tuners.lora import LoraLayer

        settings: dict[str, Any] = {}
        if self.plan.config is not None and "id2label" in self.plan.config:
            settings["num_labels"] = len(self.plan.config["id2label"])
        base = kind.from_pretrained(folder, dtype=torch.float32, ignore_mismatched_sizes=True, **settings)
        names = [f"adapter_{number}" for number in range(len(self.adapters))]
        wrapped: Any = None
        for name, (adapter, _) in zip(names, self.adapters, strict=True):
            place = adapter.model.place
            assert isinstance(place, LocalPlace)
            if wrapped is None:
                wrapped = PeftModel.from_pretrained(base, place.folder, adapter_name=name)
            else:
                wrapped.load_adapter(place.folder, adapter_name=name)
        if len(names) > 1:
            wrapped.base_model.set_adapter(names)
        for name, (_, weight) in zip(names, self.adapters, strict=True):
            for module in wrapped.modules():
                if isinstance(module, LoraLayer) and name in module.scaling:
                    module.scaling[name] *= weight
        return wrapped.eval()


def _auto_class(config: Mapping[str, Any]) -> Any:
    """transformers' own class for the model."""
    import transformers

    named = next(iter(config.get("architectures") or ()), None)
    found = getattr(transformers, str(named), None)
    if found is None:
        raise ModelError(f"config.json names no class of transformers: {named}", "leave out --verify")
    return found


def _inputs(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The built-in text as the tokens of the model; without a tokenizer, random ones."""
    from entrenar_core.verification.passage import PASSAGE

    text = config.get("text_config") or config
    size = int(text.get("vocab_size") or 256)
    most = int(text.get("max_position_embeddings") or text.get("n_positions") or _TOKENS)
    tokens = min(_TOKENS, max(most - 4, 8))
    if (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer

        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(PASSAGE).ids[:tokens]
        ids = [one for one in ids if one < size]
    else:
        ids = torch.randint(size, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    found = {"input_ids": torch.tensor([ids])}
    if config.get("is_encoder_decoder"):
        found["decoder_input_ids"] = found["input_ids"][:, :16]
    return found


def _logits(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    found = model(**inputs)
    kept: Tensor = found.logits if "logits" in found else found.last_hidden_state
    return kept


def _round_at_random(model: Any, stored: Mapping[str, torch.dtype]) -> None:
    """Moves weights by up to half of the distance to the next number of the dtype that they are stored in."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        dtype = stored.get(name)
        if dtype is not None:
            mantissa, exponent = torch.frexp(parameter)
            distance = torch.ldexp(torch.ones_like(mantissa), exponent - _BITS[dtype])
            parameter += distance * (torch.rand(parameter.shape, generator=generator) - 0.5)


def _failing(what: str) -> ExitStack:
    """Says of whatever transformers and peft raise what could not be loaded."""
    stack = ExitStack()

    def fail(_: type[BaseException] | None, error: BaseException | None, __: object) -> bool:
        if error is None or not isinstance(error, Exception) or isinstance(error, ModelError):
            return False
        raise ModelError(f"{what} cannot be run to be compared: {error}", "leave out --verify") from error

    stack.push(fail)
    return stack
