"""What passes in a teacher's layers, kept for losses between layers: hidden states, and what attention is made of.

It is kept of every real token of a row. Of attention, queries, keys and values are, and not the maps that are made of
them: a row of T tokens has T × T numbers of a map for each head, and relations of values could not be told from it.

Shapes: B rows, T positions, L real tokens of a row, K teacher's width, H query heads, G key heads, d width of a head.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from entrenar_core.data.collating import Batch
from entrenar_core.errors import UsageError
from entrenar_core.models.recording import AttentionInputs, Record
from entrenar_core.models.wants import EMBEDDINGS, Wants
from entrenar_core.teachers.cache.precision import packed, unpacked, vector_bytes
from entrenar_core.teachers.cache.settings import Precision
from entrenar_core.teachers.cache.shards import Arrays


@dataclass(frozen=True, slots=True)
class Attending:
    """What a layer does with its queries and keys, as `AttentionInputs` says it."""

    query_heads: int
    key_heads: int
    head_dim: int
    scaling: float
    causal: bool
    window: int | None
    softcap: float | None

    @property
    def widths(self) -> Mapping[str, int]:
        """Of a token's queries, keys and values."""
        keys = self.key_heads * self.head_dim
        return {"queries": self.query_heads * self.head_dim, "keys": keys, "values": keys}


@dataclass(frozen=True, slots=True)
class Layers:
    """Which layers are kept, and how. `width` is that of a hidden state; `EMBEDDINGS` stands for what the first layer
    reads.
    """

    precision: Precision
    width: int
    hidden: tuple[int, ...]
    attention: Mapping[int, Attending]

    @classmethod
    def of(cls, record: Record, precision: Precision) -> "Layers":
        """All that is in a record.

        Raises:
            UsageError: a layer adds a bias of its positions to its scores, of which queries and keys do not tell.
        """
        hidden = dict(_states(record))
        attention = {layer: _attending(layer, inputs) for layer, inputs in sorted(record.attention.items())}
        width = next((states.shape[-1] for states in hidden.values()), 0)
        return cls(precision, width, tuple(sorted(hidden)), attention)

    @property
    def wants(self) -> Wants:
        """What must be recorded of the teacher."""
        return Wants(frozenset(self.hidden), frozenset(self.attention))

    def bytes_per_token(self) -> int:
        """What a real token takes."""
        widths = [self.width] * len(self.hidden)
        widths += [width for one in self.attention.values() for width in one.widths.values()]
        return sum(vector_bytes(width, self.precision) for width in widths)

    def kept(self, record: Record, row: int, real_T: Tensor) -> Arrays:
        """The arrays of a row of the batch that was recorded, on the CPU."""
        found: dict[str, Any] = {}
        for layer, states_BTK in _states(record):
            found |= packed(_name(layer, "hidden"), states_BTK[row, real_T], self.precision)
        for layer, inputs in record.attention.items():
            for name, vectors_BHTd in _vectors(inputs).items():
                vectors_LK = vectors_BHTd[row][:, real_T].transpose(0, 1).flatten(1)
                found |= packed(_name(layer, name), vectors_LK, self.precision)
        return found

    def record(self, kept: Arrays, batch: Batch) -> Record:
        """What passed when the teacher read these rows; zero where there is padding."""
        found = Record()
        for layer in self.hidden:
            states_BTK = self._padded(_name(layer, "hidden"), kept, batch, self.width)
            if layer == EMBEDDINGS:
                found.embeddings = states_BTK
            else:
                found.hidden[layer] = states_BTK
        for layer, one in self.attention.items():
            vectors = {name: self._padded(_name(layer, name), kept, batch, width) for name, width in one.widths.items()}
            queries, keys, values = (
                vectors_BTK.view(*vectors_BTK.shape[:2], -1, one.head_dim).transpose(1, 2)
                for vectors_BTK in vectors.values()
            )
            found.attention[layer] = AttentionInputs(
                queries, keys, values, one.scaling, one.causal, one.window, one.softcap
            )
        return found

    def _padded(self, name: str, kept: Arrays, batch: Batch, width: int) -> Tensor:
        """(B, T, width): the rows of a batch are kept one behind the other."""
        real_BT = batch.attention_mask_BT.bool()
        if batch.blank:  # whose rows nobody asks for
            return torch.zeros(*real_BT.shape, width, device=real_BT.device)
        values_NK = unpacked(name, kept, self.precision, real_BT.device)
        padded_BTK = values_NK.new_zeros(*real_BT.shape, width)
        padded_BTK[real_BT] = values_NK
        return padded_BTK

    def as_json(self) -> dict[str, Any]:
        """As a manifest holds it."""
        return asdict(self) | {"hidden": list(self.hidden), "attention": {
            str(layer): asdict(one) for layer, one in self.attention.items()
        }}  # fmt: skip

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Layers":
        """The reverse; raises KeyError, TypeError or ValueError where it is none."""
        attention = {int(layer): Attending(**one) for layer, one in told["attention"].items()}
        return cls(told["precision"], told["width"], tuple(told["hidden"]), attention)


def _states(record: Record) -> Iterator[tuple[int, Tensor]]:
    if record.embeddings is not None:
        yield EMBEDDINGS, record.embeddings
    yield from sorted(record.hidden.items())


def _vectors(inputs: AttentionInputs) -> dict[str, Tensor]:
    return {"queries": inputs.queries_BHTd, "keys": inputs.keys_BGTd, "values": inputs.values_BGTd}


def _attending(layer: int, inputs: AttentionInputs) -> Attending:
    if inputs.position_bias is not None:
        raise UsageError(
            f"attention of layer {layer} adds a bias of its positions to its scores, which a cache does not keep",
            "leave losses on attention to a live teacher",
        )
    _, query_heads, _, head_dim = inputs.queries_BHTd.shape
    key_heads = inputs.keys_BGTd.shape[1]
    facts = inputs.scaling, inputs.causal, inputs.window, inputs.softcap
    return Attending(query_heads, key_heads, head_dim, *facts)


def _name(layer: int, what: str) -> str:
    return f"layer.{layer}.{what}"
