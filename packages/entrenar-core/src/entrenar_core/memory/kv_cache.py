"""What generation keeps of the tokens that it has read, by formulas over a configuration alone.

A layer of full attention keeps keys and values of every token, one with a window those of its last tokens, one with a
state (Mamba, linear attention) as much after a thousand tokens as after one. Multi-head latent attention keeps one
vector and one rotated key for all heads, as transformers, vLLM and llama.cpp have it, or, `expanded`, the keys and
values that follow from them, as transformers had it before version 5.

Sources: Shazeer 2019 (one head of keys and values), Ainslie et al. 2023 (groups), Beltagy et al. 2020 (windows), Gu &
Dao 2023 and Dao & Gu 2024 (Mamba), Yang et al. 2024 (gated delta rule), DeepSeek-AI 2024 (latent attention); sizes of
states as transformers keeps them. The dtypes of caches are torch's and llama.cpp's.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from entrenar_core.architectures import architecture_of, named_family
from entrenar_core.errors import UsageError
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.memory.cache_layers import LayerKind, layer_kinds, size, state_values, window_of

Kind = Literal["full", "sliding", "latent", "state", "crossed"]
Config = Mapping[str, Any]

_PLAIN = {
    "float32": "F32", "f32": "F32", "bfloat16": "BF16", "bf16": "BF16", "float16": "F16", "f16": "F16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8": "I8",
}  # fmt: skip
_BLOCKS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
CACHE_DTYPES = (*_PLAIN, *_BLOCKS)
"""What keys and values may be kept in: torch's names, and those of llama.cpp's `--cache-type-k`."""


@dataclass(frozen=True, slots=True)
class CachedLayers:
    """Layers of a kind: how many, the bytes of all of them, and what one more token adds to these."""

    kind: Kind
    count: int
    size_bytes: int
    token_bytes: int


@dataclass(frozen=True, slots=True)
class KvCache:
    """What all layers keep, of all rows. The encoder's tokens, which a decoder looks at, are `crossed`."""

    layers: tuple[CachedLayers, ...]

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return sum(one.size_bytes for one in self.layers)

    @property
    def token_bytes(self) -> int:
        """What one more token of every row adds."""
        return sum(one.token_bytes for one in self.layers)


def value_bytes(dtype: str) -> Fraction:
    """Bytes of one number in a cache, with its share of what its block keeps beside it.

    Raises:
        UsageError: no cache is kept so.
    """
    name = _PLAIN.get(dtype, dtype.upper() if dtype in _BLOCKS else None)
    if name is None:
        raise UsageError(f"no cache of keys and values is kept in {dtype}", f"take one of {', '.join(CACHE_DTYPES)}")
    return Fraction(DTYPES[name].block_bytes, DTYPES[name].block)


def kv_bytes(
    config: Config, batch_size: int, context: int, dtype: str, *, expanded: bool = False, written: int = 0
) -> KvCache:
    """What is kept of `context` tokens of each of `batch_size` rows.

    Args:
        config: of a model that writes, as its `to_dict()` or its config.json has it.
        expanded: of latent attention, keys and values of every head in place of what they follow from.
        written: the tokens of each row that a decoder with an encoder has read or written itself; the others are the
            encoder's. Of a decoder alone they are counted with the context.

    Raises:
        UsageError: no cache is kept in the dtype, or blocks of it do not fill a row.
        ModelError: the configuration does not say how large a layer is.
    """
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        return kv_bytes(inner, batch_size, context, dtype, expanded=expanded, written=written)
    asked = _Asked(config, batch_size, dtype, expanded)
    family = named_family(config)
    if config.get("is_encoder_decoder") or (family is not None and family.kind == "encoder-decoder"):
        layers = size(config, "num_decoder_layers", "decoder_layers", "num_layers")
        width = asked.width(config)
        crossed = asked.attended("crossed", layers, context, width)
        return KvCache((crossed, asked.attended("full", layers, written, width)))
    return KvCache(tuple(asked.of_decoder(context + written)))


class _Asked:
    """What all layers of a model have in common."""

    def __init__(self, config: Config, rows: int, dtype: str, expanded: bool) -> None:
        self.config, self.rows, self.dtype = config, rows, dtype
        self.latent = config.get("kv_lora_rank") is not None and not expanded
        self.value_bytes = value_bytes(dtype)

    def of_decoder(self, tokens: int) -> Iterator[CachedLayers]:
        kinds = layer_kinds(self.config)
        window, places = window_of(self.config), Counter(map(self._place, range(len(kinds)), kinds))
        for (kind, width), layers in places.items():
            if kind is not None:
                yield self.attended(kind, layers, tokens, width, window if kind == "sliding" else None)
        states = sum(kind.endswith("state") for kind in kinds)
        if states:
            yield CachedLayers("state", states, states * self._state_bytes(), 0)

    def _place(self, number: int, kind: LayerKind) -> tuple[Kind | None, int]:
        """What a layer is, of those with attention, and the numbers that it keeps of a token."""
        if kind in ("state", "none"):
            return None, 0
        own = self.config.get("per_layer_config") or {}
        searched = self.config.get("indexer_types")
        indexed = kind == "indexed" and not (searched and searched[number] == "shared")
        width = self.width({**self.config, **own.get(str(number), {})}, indexed=indexed)
        if kind.startswith("sliding"):
            return "sliding", width
        return "latent" if self.latent else "full", width

    def attended(self, kind: Kind, layers: int, tokens: int, width: int, window: int | None = None) -> CachedLayers:
        """Layers with attention, whose window, if any, has as many tokens."""
        token_bytes = self._bytes(layers * self.rows * width)
        ends = kind == "crossed" or (window is not None and tokens >= window)
        kept = tokens if window is None else min(tokens, window)
        return CachedLayers(kind, layers, kept * token_bytes, 0 if ends else token_bytes)

    def width(self, config: Config, *, indexed: bool = False) -> int:
        """The numbers that a layer with attention keeps of a token."""
        if config.get("kv_lora_rank") is not None:
            turned, index = size(config, "qk_rope_head_dim"), size(config, "index_head_dim") if indexed else 0
            if self.latent:
                return size(config, "kv_lora_rank") + turned + index
            of_head = size(config, "qk_nope_head_dim") + turned + size(config, "v_head_dim")
            return size(config, "num_attention_heads") * of_head + index
        shape = architecture_of(config)
        heads = shape.num_heads or size(config, "num_attention_heads", "n_heads", "n_head")
        hidden = shape.hidden_size or size(config, "hidden_size", "d_model", "n_embd")
        return 2 * (shape.num_kv_heads or heads) * (shape.head_dim or hidden // heads)

    def _bytes(self, values: int) -> int:
        taken = values * self.value_bytes
        if taken.denominator != 1:
            raise UsageError(
                f"keys and values of a {self.config.get('model_type')} do not fill blocks of {self.dtype}",
                "keep them in float16",
            )
        return int(taken)

    def _state_bytes(self) -> int:
        """Blocks are of keys and values alone: a state is kept in whole numbers."""
        own, long = state_values(self.config)
        each = self.value_bytes if self.dtype in _PLAIN else value_bytes("float32")
        return int(self.rows * (own * each + long * value_bytes("float32")))
