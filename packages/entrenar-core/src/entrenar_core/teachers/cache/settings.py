"""What a build is asked for, and what it tells before it begins; without torch."""

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16", "float16", "int8"]
KindName = Literal["hidden", "topk", "sampled", "logits", "vectors"]

AGAIN = "build the cache again: what is whole of it is kept"
"""What to do about a cache that is damaged."""


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What is kept of the teacher. `kind` is found if not given: logits of a classifier, the vectors of a sentence
    encoder, else hidden states.

    `precision` is of hidden states, and of the layers that losses compare, bfloat16 if not given; `top_k` tokens are
    kept of a top-k cache, 100 if not given, and `samples` drawn of a sampled one, 50 if not given. A shard has about
    `shard_bytes`: as much is lost when a build is killed. Of several teachers, `member` says whose cache it is, counted
    from 0.
    """

    kind: KindName | None = None
    precision: Precision | None = None
    top_k: int | None = None
    samples: int | None = None
    shard_bytes: int = 64_000_000
    member: int | None = None


@dataclass(frozen=True, slots=True)
class CacheForecast:
    """What a build will do.

    Of layers something is kept of every token, beside what is kept of positions. `bytes` is an estimate, of draws at
    most, and so are the `seconds` that it will take, from how fast the teacher read a batch of middle length;
    `positions_per_s` is None where nothing is left to read.
    """

    kind: str
    rows: int
    positions: int
    bytes_per_position: float
    bytes_per_token: float
    bytes: int
    shards: int
    shards_there: int
    positions_per_s: float | None
    seconds: float
