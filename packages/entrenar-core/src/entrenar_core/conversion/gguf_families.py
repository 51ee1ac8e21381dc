"""How the models of each family are written as GGUF: the rows of `gguf_families.toml`, which explains the fields."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from entrenar_core.architectures import Family, families, family_of
from entrenar_core.errors import ModelError


@dataclass(frozen=True, slots=True)
class GgufFamily:
    """One row, with its family."""

    family: Family
    transformers_class: str
    epsilon: str
    rms: bool = False
    changes: tuple[tuple[str, str, str], ...] = ()
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    missing: Mapping[str, Any] = field(default_factory=dict)
    biases: Mapping[str, str] = field(default_factory=dict)
    part_turned: bool = False
    sliding: Literal["", "ignored", "pattern"] = ""
    period: int = 1
    local_theta: bool = False
    scale: bool = False
    scaled_by_width: int | None = None
    leaves: tuple[str, ...] = ()
    classifier: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the family."""
        return self.family.name

    @property
    def architecture(self) -> str:
        """What GGUF calls it."""
        assert self.family.gguf is not None
        return self.family.gguf

    def setting(self, config: Mapping[str, Any], key: str) -> Any:
        """What a config.json says, or what transformers takes for it where it is not set."""
        value = config.get(key)
        return self.missing.get(key) if value is None else value


@cache
def gguf_families() -> Mapping[str, GgufFamily]:
    """The families that are written as GGUF, by name."""
    rows = tomllib.loads(files(__package__).joinpath("gguf_families.toml").read_text("utf-8"))
    return {name: _row(families()[name], row) for name, row in rows.items()}


def _row(family: Family, row: dict[str, Any]) -> GgufFamily:
    only = {key: tuple(values) for key, values in row.pop("only", {}).items()}
    changes = tuple((pattern, change, heads) for pattern, change, heads in row.pop("changes", ()))
    return GgufFamily(family, row.pop("class"), only=only, changes=changes, leaves=tuple(row.pop("leaves", ())), **row)


def written_family(config: Mapping[str, Any], name: str) -> GgufFamily:
    """The family of the model that `config` is of, which errors call `name`.

    Raises:
        ModelError: no GGUF of it is written, or llama.cpp computes something else than its settings say.
    """
    family = family_of(config)
    found = gguf_families().get(family.name) if family is not None else None
    if found is None:
        listed = ", ".join(gguf_families())
        raise ModelError(
            f"{name} is of the family {config.get('model_type') or 'unknown'}, of which no GGUF is written",
            f"the families are {listed}; take another format for others",
        )
    causal = {"is_causal": (True,)} if found.family.kind == "decoder" else {}
    for key, values in {**found.only, **causal}.items():
        said = config.get(key)
        if said is not None and said not in values:
            raise ModelError(
                f"{name} has `{key}: {said}`, which llama.cpp does not compute in a {found.name}",
                "take another format for it: safetensors or onnx",
            )
    return found
