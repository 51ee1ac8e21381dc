"""How long a sequence a model reads, by its configuration, and the refusal of a longer one.

A table of learned positions ends; rotary models compute on behind what their configuration states, but were not made
for it, so that what is stated (with a scaling of the rotation taken in, as configurations state it) is their limit too.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from entrenar_core.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_encoder_position_embeddings",
    "max_seq_len",
    "max_sequence_length",
)
_ENDLESS = (
    *("bloom", "falcon_mamba", "longt5", "mamba", "mamba2", "mt5", "rwkv"),
    *("switch_transformers", "t5", "transfo-xl", "umt5", "xlnet", "xlstm"),
)
"""Relative distances in buckets, ALiBi, or a state: what their configurations say of positions is no limit."""
_AFTER_PAD = (
    *("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet"),
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
"""Their first token's position is the one behind the padding token's id."""


def positions_of(config: Mapping[str, Any]) -> int | None:
    """The tokens of the longest sequence that the model of a config.json reads; None where there is no such limit, or
    none is stated.
    """
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        return positions_of(inner)
    if _is_endless(config):
        return None
    stated = next((value for key in _KEYS if type(value := config.get(key)) is int and value > 0), None)
    if stated is None or config.get("model_type") not in _AFTER_PAD or _rotates(config):
        return stated
    padding = config.get("pad_token_id")
    return stated - (padding if isinstance(padding, int) else 0) - 1


def _is_endless(config: Mapping[str, Any]) -> bool:
    attention = config.get("attn_config")
    alibi = config.get("alibi") or (isinstance(attention, Mapping) and attention.get("alibi"))
    return bool(alibi) or config.get("model_type") in _ENDLESS or config.get("position_biased_input") is False


def _rotates(config: Mapping[str, Any]) -> bool:
    return config.get("position_embedding_type") == "rotary"


def require_positions(config: "PreTrainedConfig", length: int, name: str) -> None:
    """Refuses a sequence that is longer than a model's positions.

    Raises:
        UsageError: it is longer.
    """
    positions = positions_of(config.to_dict())
    if positions is not None and length > positions:
        raise UsageError(
            f"a sequence of {length:,} tokens is longer than the {positions:,} positions of {name}",
            f"take at most {positions:,} tokens",
        )
