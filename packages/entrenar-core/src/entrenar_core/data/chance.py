"""Where chance comes from: a seed and what it is for, so that one draw never depends on another."""

import hashlib
import random


def drawer(seed: int, purpose: str) -> random.Random:
    """A source of chance for one purpose; the seed may be of any size."""
    return random.Random(mixed(seed, purpose))


def mixed(seed: int, purpose: str) -> int:
    """63 bits of both: seed 1 in epoch 0 is not seed 0 in epoch 1."""
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}".encode()).digest()[:8], "big") >> 1
