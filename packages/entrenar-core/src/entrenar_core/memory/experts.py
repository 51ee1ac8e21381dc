"""Experts without data: the products of many experts at once, where torch knows none without values but in bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.integrations import moe


@contextmanager
def experts_without_data() -> Iterator[None]:
    """Within, experts' products are the operation of transformers that takes and gives as much memory as torch's, and
    that can be done without data in every dtype.
    """
    before = moe._can_use_grouped_mm
    moe._can_use_grouped_mm = lambda *_: False
    try:
        yield
    finally:
        moe._can_use_grouped_mm = before
