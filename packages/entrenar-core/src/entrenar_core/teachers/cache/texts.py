"""What a cache keeps of texts that a teacher reads by itself.

Shapes: N texts, C classes or the width of a sentence's vector.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from entrenar_core.errors import DataError
from entrenar_core.losses.targets import Logits
from entrenar_core.teachers.cache.kinds import Kind
from entrenar_core.teachers.cache.planning import text_key
from entrenar_core.teachers.cache.shards import Arrays
from entrenar_core.teachers.cache.store import RowStore
from entrenar_core.teachers.texts import ids_of

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation

ReadTexts = Callable[[Sequence[str]], Sequence[Arrays]]
"""From texts to what a cache keeps of them, in their order."""


def kept_of_texts(
    prepared: "Preparation",
    store: RowStore,
    kind: Kind,
    texts: Sequence[str],
    read_live: ReadTexts | None = None,
    *,
    batch_size: int,
) -> Tensor:
    """What the teacher said of each text, (N, C), in 32 bits. Those that the cache lacks are read live.

    Raises:
        DataError: a text is not in the cache and nobody reads it, or is damaged there.
    """
    places = [store.place(text_key(ids)) for ids in ids_of(prepared, texts)]
    lacking = [index for index, place in enumerate(places) if place is None]
    if lacking and read_live is None:
        raise DataError(
            f"the cache lacks {len(lacking):,} texts of this data, such as {texts[lacking[0]][:60]!r}",
            "build it again with this configuration, or set `teacher.cache.missing: live`",
        )
    live: dict[int, Arrays] = {}
    for start in range(0, len(lacking), batch_size):
        chosen = lacking[start : start + batch_size]
        assert read_live is not None
        live |= dict(zip(chosen, read_live([texts[index] for index in chosen]), strict=True))
    rows = [live[index] if place is None else store.read(place) for index, place in enumerate(places)]
    said = kind.targets({"values": np.concatenate([row["values"] for row in rows])}, "cpu")
    assert isinstance(said, Logits), "numbers as they are"
    return said.logits_NV
