"""Known sizes by name, such as `tinyllama-1.1b`: rows of `reference_sizes.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class ReferenceSizes:
    """The sizes of a known model; reference_sizes.toml explains the fields. `size` is what the model is meant by when a
    size is asked for alone, such as `7B`; `hub` is its repository.
    """

    name: str
    family: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    tied: bool
    parameters: int
    size: str | None = None
    hub: str | None = None


@cache
def reference_sizes() -> Mapping[str, ReferenceSizes]:
    """Every known model by name."""
    rows = tomllib.loads(files(__package__).joinpath("reference_sizes.toml").read_text("utf-8"))["sizes"]
    return {name: ReferenceSizes(name, **row) for name, row in rows.items()}


def sizes_named(text: str) -> ReferenceSizes | None:
    """The known model of a name, or of a size alone, such as `7B`; None where there is none."""
    wanted = text.strip().lower()
    rows = reference_sizes()
    return rows.get(wanted) or next((one for one in rows.values() if (one.size or "").lower() == wanted), None)


def sizes_of_repository(repo_id: str) -> ReferenceSizes | None:
    """The known model that a repository holds, whatever follows its name, such as `-hf` or `-chat`; None of others."""
    wanted = repo_id.strip().lower()
    found = [one for one in reference_sizes().values() if one.hub and _is_of(wanted, one.hub.lower())]
    return max(found, key=lambda one: len(one.hub or ""), default=None)


def _is_of(repo_id: str, hub: str) -> bool:
    return repo_id == hub or repo_id.startswith(f"{hub}-")
