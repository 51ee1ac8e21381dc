"""What of a teacher's distributions is kept: last hidden states, the likeliest tokens, draws, or all logits.

Each kind turns what a teacher says of a row into arrays, and arrays into `Targets`. Arrays run over positions, but for
those of draws, of which a position has as many as it has distinct ones.

Shapes: N positions, H width, K tokens of a position, J temperatures, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from entrenar_core.losses.head import Head
from entrenar_core.losses.sparse import TopKRows
from entrenar_core.losses.sums import at_least_fp32
from entrenar_core.losses.targets import HeadRows, Logits, Targets
from entrenar_core.teachers.cache.precision import packed, unpacked, vector_bytes
from entrenar_core.teachers.cache.settings import Precision
from entrenar_core.teachers.cache.shards import Arrays

Rows = Logits | HeadRows
TILE = 256
"""Rows of logits at a time."""


@dataclass(frozen=True, slots=True)
class TaughtRow:
    """A row with what the teacher says of those of its positions that count.

    `labels_N` are the tokens or the class there, −100 where there is none; `key` is what the row is known by.
    """

    said: Rows
    labels_N: Tensor
    key: bytes


class Kind(Protocol):
    """How a teacher's rows are kept."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def bytes_per_position(self) -> float:
        """What a position takes; of draws, at most."""
        ...

    def kept(self, row: TaughtRow) -> Arrays:
        """The arrays of a row, on the CPU."""
        ...

    def targets(self, kept: Arrays, device: torch.device | str) -> Targets:
        """What the arrays say."""
        ...


@dataclass(frozen=True, slots=True)
class Hidden:
    """What the teacher's head reads, from which its logits are made again: exact, up to the precision."""

    precision: Precision
    width: int
    head: Head
    vocabulary: int
    name: str = "hidden"

    def bytes_per_position(self) -> float:
        """As `Kind.bytes_per_position`."""
        return vector_bytes(self.width, self.precision)

    def kept(self, row: TaughtRow) -> Arrays:
        """As `Kind.kept`."""
        assert isinstance(row.said, HeadRows), "a teacher whose logits alone are at hand has no last hidden states"
        return packed("hidden", row.said.hidden_NH, self.precision)

    def targets(self, kept: Arrays, device: torch.device | str) -> HeadRows:
        """As `Kind.targets`."""
        return HeadRows(unpacked("hidden", kept, self.precision, device), self.head, self.vocabulary)


@dataclass(frozen=True, slots=True)
class Values:
    """A few numbers as they are: the logits of a classifier, or the vector of a sentence."""

    columns: int
    name: str = "logits"

    def bytes_per_position(self) -> float:
        """As `Kind.bytes_per_position`."""
        return 4 * self.columns

    def kept(self, row: TaughtRow) -> Arrays:
        """As `Kind.kept`."""
        return {"values": row.said.of(slice(None)).detach().float().cpu().numpy()}

    def targets(self, kept: Arrays, device: torch.device | str) -> Logits:
        """As `Kind.targets`."""
        return Logits(torch.from_numpy(kept["values"]).to(device))


@dataclass(frozen=True, slots=True)
class TopK:
    """Log-probabilities of the likeliest `k` tokens in 16 bits, and what the others have together, by temperature.

    It serves every temperature from `lowest` to `highest`.
    """

    k: int
    lowest: float
    highest: float
    vocabulary: int
    name: str = "topk"

    @property
    def betas(self) -> tuple[float, ...]:
        """The inverse temperatures at which that is known exactly (`TopKRows`)."""
        return nodes_between(self.lowest, self.highest)

    def bytes_per_position(self) -> float:
        """As `Kind.bytes_per_position`."""
        return self.k * (token_bytes(self.vocabulary) + 2) + 4 * len(self.betas) + 4

    def kept(self, row: TaughtRow) -> Arrays:
        """As `Kind.kept`."""
        found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for logits_NV, labels_N in tiles(row):
            log_p_NV = logits_NV.log_softmax(-1)
            log_p_NK, tokens_NK = log_p_NV.topk(self.k)
            label_N = of_labels(log_p_NV, labels_N)
            others_NV = log_p_NV.scatter_(-1, tokens_NK, -torch.inf)
            rest_NJ = torch.stack([(others_NV * beta).logsumexp(-1) for beta in self.betas], -1)
            found.append((tokens_NK, log_p_NK, rest_NJ, label_N))
        tokens_NK, log_p_NK, rest_NJ, label_N = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        return {
            "tokens": tokens_NK.numpy().astype(token_dtype(self.vocabulary)),
            "log_p": log_p_NK.clamp_min(torch.finfo(torch.float16).min).half().numpy(),
            "rest": rest_NJ.float().numpy(),
            "label": label_N.float().numpy(),
        }

    def targets(self, kept: Arrays, device: torch.device | str) -> TopKRows:
        """As `Kind.targets`."""
        return TopKRows(
            torch.from_numpy(kept["tokens"].astype(np.int32)).to(device),
            torch.from_numpy(kept["log_p"]).to(device).float(),
            torch.from_numpy(kept["rest"]).to(device),
            self.betas,
            self.vocabulary,
        )


def nodes_between(lowest: float, highest: float) -> tuple[float, ...]:
    """Inverse temperatures between those of two temperatures: Chebyshev's, from which a smooth function is told best.
    One temperature needs one, and a range of more than a factor of four more than five.
    """
    count = 5 if highest <= 4 * lowest else 9
    first, last = 1 / highest, 1 / lowest
    if first == last:
        return (first,)
    middle, half = (first + last) / 2, (last - first) / 2
    return tuple(middle + half * math.cos(math.pi * (2 * place + 1) / (2 * count)) for place in range(count))


def tiles(row: TaughtRow, size: int = TILE) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits of some positions, in fp32 or better, and their labels."""
    for start in range(0, len(row.said), size):
        tile = slice(start, start + size)
        yield at_least_fp32(row.said.of(tile)), row.labels_N[tile]


def of_labels(log_p_NV: Tensor, labels_N: Tensor) -> Tensor:
    """The log-probability of each label, NaN where there is none."""
    there_N = labels_N >= 0
    found_N = log_p_NV.gather(-1, labels_N.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return torch.where(there_N, found_N, torch.nan)


def token_dtype(vocabulary: int) -> type[np.unsignedinteger]:
    """The smallest that holds the ids of a vocabulary."""
    return np.uint16 if vocabulary <= 2**16 else np.uint32


def token_bytes(vocabulary: int) -> int:
    """Of `token_dtype`."""
    return 2 if vocabulary <= 2**16 else 4


def kind_settings(kind: Kind) -> dict[str, Any]:
    """A kind as a manifest holds it; the head of hidden states is a file of its own."""
    found = {field.name: getattr(kind, field.name) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    head = found.pop("head", None)
    if head is not None:
        found |= {"scale": head.scale, "softcap": head.softcap}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
