"""Tokens that are drawn from a teacher's distributions.

Shapes: N positions, S draws of each, K distinct tokens of them, V vocabulary.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from entrenar_core.losses.sparse import SampledRows
from entrenar_core.teachers.cache.kinds import TaughtRow, of_labels, tiles, token_bytes, token_dtype
from entrenar_core.teachers.cache.shards import Arrays

MOST_SAMPLES = 255
"""Of a position: they are counted in a byte."""
_TILE = 64
"""Positions at a time: their probabilities are added up in 64 bits."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Tokens drawn from the teacher's distribution at a temperature, and how often each was (`SampledRows`).

    The draws of a row follow from `seed` and from the row itself.
    """

    samples: int
    temperature: float
    seed: int
    vocabulary: int
    name: str = "sampled"

    def bytes_per_position(self) -> float:
        """As `Kind.bytes_per_position`: where no token is drawn twice."""
        return self.samples * (token_bytes(self.vocabulary) + 1) + 1 + 4 + 4 + token_bytes(self.vocabulary)

    def kept(self, row: TaughtRow) -> Arrays:
        """As `Kind.kept`."""
        own = hashlib.blake2b(row.key + self.seed.to_bytes(8, "little"), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(own, "little"))
        found: list[tuple[Tensor, ...]] = []
        for logits_NV, labels_N in tiles(row, _TILE):
            log_p_NV = (logits_NV / self.temperature).log_softmax(-1)
            p_NV = log_p_NV.exp()
            tokens, counts, distinct_N = self._drawn(p_NV, generator)
            label_N = of_labels(logits_NV.log_softmax(-1), labels_N)
            found.append((tokens, counts, distinct_N, torch.special.entr(p_NV).sum(-1), logits_NV.argmax(-1), label_N))
        whole = (torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True))
        token = token_dtype(self.vocabulary)
        dtypes = {"tokens": token, "counts": np.uint8, "distinct": np.uint8, "entropy": np.float32, "top": token,
                  "label": np.float32}  # fmt: skip
        return {name: values.astype(dtypes[name]) for name, values in zip(dtypes, whole, strict=True)}

    def _drawn(self, p_NV: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The distinct tokens of all positions, one position behind the other, how often each was drawn, and how many
        each position has. A draw is where a random number falls among the cumulated probabilities.
        """
        places_NS = torch.rand(len(p_NV), self.samples, generator=generator, dtype=torch.float64).to(p_NV.device)
        cumulated_NV = p_NV.double().cumsum(-1)
        drawn_NS = torch.searchsorted(cumulated_NV, places_NS * cumulated_NV[:, -1:], right=True)
        drawn_NS = drawn_NS.clamp_max_(p_NV.shape[-1] - 1).sort(-1).values
        first_NS = torch.ones_like(drawn_NS, dtype=torch.bool)
        first_NS[:, 1:] = drawn_NS[:, 1:] != drawn_NS[:, :-1]
        starts = first_NS.flatten().nonzero().squeeze(-1)
        counts = torch.cat([starts, starts.new_tensor([first_NS.numel()])]).diff()
        return drawn_NS[first_NS], counts, first_NS.sum(-1)

    def targets(self, kept: Arrays, device: torch.device | str) -> SampledRows:
        """As `Kind.targets`."""
        distinct_N = torch.from_numpy(kept["distinct"].astype(np.int64))
        widest = int(distinct_N.max()) if len(distinct_N) else 1
        taken_NK = torch.arange(widest) < distinct_N.unsqueeze(-1)
        tokens_NK = torch.zeros(taken_NK.shape, dtype=torch.int32)
        tokens_NK[taken_NK] = torch.from_numpy(kept["tokens"].astype(np.int32))
        shares_NK = torch.zeros(taken_NK.shape)
        shares_NK[taken_NK] = torch.from_numpy(kept["counts"].astype(np.float32)) / self.samples
        return SampledRows(
            tokens_NK.to(device),
            shares_NK.to(device),
            torch.from_numpy(kept["entropy"]).to(device),
            torch.from_numpy(kept["top"].astype(np.int32)).to(device),
            self.temperature,
            self.vocabulary,
        )
