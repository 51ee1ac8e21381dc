"""The methods that `compare` knows by name, and what was published of them."""

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from entrenar_core.config.adapters import (
    USUAL_RANK,
    AdaptionPromptAdapter,
    AnyAdapter,
    BiasAdapter,
    Ia3Adapter,
    LoraAdapter,
    PrefixAdapter,
    PromptAdapter,
    Quantization,
)
from entrenar_core.errors import UsageError
from entrenar_lora.reports.compare import Published

QLORA_RANK = 64
"""As Dettmers et al. 2023 train."""
USUAL = "full,lora-16,lora-64,dora-16,qlora-4bit,qlora-8bit,ia3,prompt-20,prefix-20,bias,adaption-prompt"
_FORMS = re.compile(
    r"(?P<method>full|lora|dora|qlora-[48]bit|ia3|prompt|prefix|bias|adaption-prompt)(?:-(?P<number>\d+))?"
)
_WITH_NUMBERS = ("lora", "dora", "qlora-4bit", "qlora-8bit", "prompt", "prefix", "adaption-prompt")


@dataclass(frozen=True, slots=True)
class Method:
    """A method by its name: what trains, all of the model if nothing is said, and how weights are held."""

    name: str
    kind: str
    adapter: AnyAdapter | None
    quantisation: Quantization | None = None


def methods_named(text: str) -> list[Method]:
    """`lora-16,ia3` and the like.

    Raises:
        UsageError: one is no method, is there twice, or has a number that means nothing.
    """
    names = [one.strip() for one in text.split(",") if one.strip()]
    if not names:
        raise UsageError("--methods names none", f"take some of {USUAL}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--methods has {twice[0]} twice", "name it once")
    return [_method(name) for name in names]


def _method(name: str) -> Method:
    found = _FORMS.fullmatch(name)
    if found is None:
        raise UsageError(
            f"--methods: {name} is no method", f"take some of {USUAL}; numbers are ranks or virtual tokens"
        )
    kind, number = found["method"], None if found["number"] is None else int(found["number"])
    if number is not None and (kind not in _WITH_NUMBERS or not 0 < number < 1 << 31):
        raise UsageError(f"--methods: {name} has a number that means nothing", f"write {kind}, or another number")
    return _made(name, kind, number)


def _made(name: str, kind: str, number: int | None) -> Method:
    tokens: Any = {} if number is None else {"virtual_tokens": number}
    match kind:
        case "full":
            return Method(name, kind, None)
        case "lora" | "dora":
            return Method(name, kind, LoraAdapter(rank=number or USUAL_RANK, dora=kind == "dora"))
        case "qlora-4bit" | "qlora-8bit":
            how = Quantization(bits=4 if kind == "qlora-4bit" else 8)
            return Method(name, kind, LoraAdapter(rank=number or QLORA_RANK), how)
        case "ia3":
            return Method(name, kind, Ia3Adapter(method="ia3"))
        case "prompt":
            return Method(name, kind, PromptAdapter(method="prompt", **tokens))
        case "prefix":
            return Method(name, kind, PrefixAdapter(method="prefix", **tokens))
        case "bias":
            return Method(name, kind, BiasAdapter(method="bias"))
        case _:
            return Method(name, kind, AdaptionPromptAdapter(method="adaption-prompt", **tokens))


@cache
def _published() -> Sequence[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads(files(__package__).joinpath("published.toml").read_text("utf-8"))[
        "result"
    ]
    return found


def published_of(method: Method) -> Iterator[Published]:
    """What was reported of a method, or of it with this number; nothing of weights that are quantised."""
    for one in _published():
        for name in (method.name, method.kind):
            if name in one["values"]:
                yield Published(one["values"][name], one["setting"], one["source"])
                break
