"""What a row is known by in a cache: its final tokens, and which of its positions count.

Not its place: shuffled, in other batches, in a subset or in a file of another name, a row is the same row.

Shapes: B rows, T positions.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from entrenar_core.data.collating import Batch

KEY_BYTES = 16


def row_key(ids: Sequence[int] | np.ndarray, counts: Sequence[bool] | np.ndarray) -> bytes:
    """128 bits of BLAKE2b over the tokens of a row, and which of its positions count.

    Args:
        ids: its tokens, without padding.
        counts: of each token, whether what the teacher says of it is asked for.
    """
    digest = hashlib.blake2b(np.asarray(ids, dtype="<i8").tobytes(), digest_size=KEY_BYTES)
    digest.update(np.packbits(np.asarray(counts, dtype=bool)).tobytes())
    return digest.digest()


def keys_of(batch: Batch) -> Iterator[bytes]:
    """Of the rows of a batch, in their order, or of the examples that share them, one after another. The class of a
    text counts once, whatever its tokens.
    """
    ids_BT, real_BT = batch.input_ids_BT.cpu().numpy(), batch.attention_mask_BT.cpu().numpy().astype(bool)
    targets = batch.targets.cpu().numpy()
    begins_BT = None if batch.packed is None else batch.packed.positions_BT.cpu().numpy() == 0
    for row, (ids_T, real_T) in enumerate(zip(ids_BT, real_BT, strict=True)):
        counts = targets[row][real_T] if targets.ndim > 1 else np.zeros(0, dtype=bool)
        if begins_BT is None:
            yield row_key(ids_T[real_T], counts)
            continue
        starts = np.flatnonzero(begins_BT[row][real_T])[1:]
        for ids, of_ids in zip(np.split(ids_T[real_T], starts), np.split(counts, starts), strict=True):
            yield row_key(ids, of_ids)
