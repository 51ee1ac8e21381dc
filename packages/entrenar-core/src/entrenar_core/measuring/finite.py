"""Finds values that are no finite numbers, as fast as a file is read.

Codes that are not finite are the largest of each sign, so two maxima over a block of raw integers find whether it has
any, whatever tensors it belongs to; only a block that fails is decoded to find where. Blocks of quantised weights are
not finite just where a scale in them is not, and these are halves at fixed places, as `gguf.quants` reads them; of the
types IQ1_M and MXFP4 all values are decoded, which is slower.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrenar_core.formats.decoding import decodable, decode, numbers_per_value
from entrenar_core.formats.dtypes import Dtype
from entrenar_core.formats.sources import Source
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.measuring.reading import Bytes, Content, content_of, fill
from entrenar_core.measuring.results import NonFinite
from entrenar_core.stored_model import StoredModel
from entrenar_core.threads import Progress, share_out

BLOCK_BYTES = 1 << 20
"""Measured: less makes more calls, more does not stay in a cache."""

_MAX_GAP_BYTES = 64  # what aligns a tensor lies before it, and is read along
# The least code of a negative and of a positive value that is not finite, and the bytes of a code.
_CODES = {
    "F64": (0xFFF0_0000_0000_0000, 0x7FF0_0000_0000_0000, 8),
    "F32": (0xFF80_0000, 0x7F80_0000, 4),
    "F16": (0xFC00, 0x7C00, 2),
    "BF16": (0xFF80, 0x7F80, 2),
    "F8_E4M3": (0xFF, 0x7F, 1),
    "F8_E5M2": (0xFC, 0x7C, 1),
    "F8_E8M0": (0xFF, 0xFF, 1),
    "C64": (0xFF80_0000, 0x7F80_0000, 4),
    "C128": (0xFFF0_0000_0000_0000, 0x7FF0_0000_0000_0000, 8),
}
_ONE_NAN = ("F8_E4M3FNUZ", "F8_E5M2FNUZ")  # 0x80, and nothing else
_ALWAYS_FINITE = ("F6_E2M3", "F6_E3M2", "F4")
# At which bytes of a block its scales are.
_SCALES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "APR_Q4", "IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}

_Suspects = Callable[[Bytes], bool]


def non_finite(
    model: StoredModel,
    tensors: Iterable[StoredTensor] | None = None,
    *,
    progress: Progress | None = None,
    threads: int | None = None,
) -> tuple[NonFinite, ...]:
    """The tensors that have NaN or infinite values, in the order of the model.

    Args:
        tensors: which are looked at; all whose values can be decoded where it is not given.
        progress: is told of as many bytes as these tensors have, and of a few that lie between them.

    Raises:
        ModelError: a tensor cannot be decoded; or a file ends before, or cannot be read.
    """
    chosen = [one for one in model.tensors.values() if decodable(one.dtype)] if tensors is None else list(tensors)
    found = _Found()

    def worker() -> Callable[[_Block], int]:
        buffer = np.empty(BLOCK_BYTES, np.uint8)

        def look(block: _Block) -> int:
            run = block.run
            if run.suspects is not None:
                raw = fill(run.source, run.start + block.place, buffer[: block.size])
                if run.suspects(raw):
                    found.look(run, block.place, raw)
            return block.size

        return look

    share_out(_blocks(model, chosen), worker, progress=progress, threads=threads)
    return found.of(chosen)


@dataclass(frozen=True, slots=True)
class _Run:
    """Tensors of one dtype that lie one after the other from `start` on; `places` is where each starts, from there."""

    source: Source
    start: int
    size: int
    contents: Sequence[Content]
    places: Sequence[int]
    suspects: _Suspects | None


@dataclass(frozen=True, slots=True)
class _Block:
    run: _Run
    place: int
    size: int


def _blocks(model: StoredModel, tensors: Sequence[StoredTensor]) -> Iterator[_Block]:
    for run in _runs(model, tensors):
        whole = run.contents[0].tensor.dtype.block_bytes
        step = run.size if run.suspects is None else BLOCK_BYTES // whole * whole
        for place in range(0, run.size, max(step, 1)):
            yield _Block(run, place, min(step, run.size - place))


def _runs(model: StoredModel, tensors: Sequence[StoredTensor]) -> Iterator[_Run]:
    """What is read at once: neighbours together, so that small tensors cost no more than their bytes."""
    together: list[Content] = []
    for tensor in sorted(filter(_in_a_run, tensors), key=lambda tensor: (tensor.file, tensor.offset)):
        if together and not _continues(together[-1].tensor, tensor):
            yield _run(together)
            together = []
        together.append(content_of(model, tensor))
    if together:
        yield _run(together)
    for tensor in tensors:  # one by one, since some are read whole
        if not _in_a_run(tensor) and tensor.values:
            yield _run([content_of(model, tensor)])


def _in_a_run(tensor: StoredTensor) -> bool:
    return bool(tensor.values) and not tensor.inline and tensor.strides is None and not tensor.dtype.head_bytes


def _continues(before: StoredTensor, tensor: StoredTensor) -> bool:
    gap = tensor.offset - before.end
    near = 0 <= gap < _MAX_GAP_BYTES and gap % tensor.dtype.block_bytes == 0
    return near and before.dtype == tensor.dtype and before.file == tensor.file


def _run(contents: Sequence[Content]) -> _Run:
    first, last = contents[0], contents[-1]
    size = last.start + last.size_bytes - first.start
    places = [content.start - first.start for content in contents]
    return _Run(first.source, first.start, size, contents, places, _suspects(first))


def _suspects(content: Content) -> _Suspects | None:
    """What says whether a block may have values that are not finite; None where no value can be."""
    dtype = content.tensor.dtype
    if dtype.name in _CODES:
        return _large_codes(*_CODES[dtype.name])
    if dtype.name in _ONE_NAN:
        return lambda raw: bool(raw.view(np.int8).min() == -128)
    if dtype.name in _SCALES:
        return _large_scales(dtype, _SCALES[dtype.name])
    if dtype.kind in ("integer", "boolean") or dtype.name in _ALWAYS_FINITE:
        return None
    if content.scale is not None and abs(content.scale) < np.finfo(np.float32).max / 128:
        return None
    return lambda raw: not np.isfinite(decode(raw, dtype, scale=content.scale)).all()


def _large_codes(negative: int, positive: int, size: int) -> _Suspects:
    unsigned, signed = np.dtype(f"<u{size}"), np.dtype(f"<i{size}")
    return lambda raw: bool(raw.view(unsigned).max() >= negative or raw.view(signed).max() >= positive)


def _large_scales(dtype: Dtype, places: Sequence[int]) -> _Suspects:
    def suspects(raw: Bytes) -> bool:
        blocks = raw.reshape(-1, dtype.block_bytes)
        scales = (blocks[:, place : place + 2].view("<u2") & 0x7FFF for place in places)
        return any(bool(codes.max() >= 0x7C00) for codes in scales)

    return suspects


class _Found:
    """What is not finite, by tensor; several threads add to it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts: dict[str, tuple[int, int, int, float]] = {}

    def look(self, run: _Run, start: int, raw: Bytes) -> None:
        """Decodes what a block, which starts at `start` in the run, has of each of its tensors."""
        first = max(bisect_right(run.places, start) - 1, 0)
        for content, place in zip(run.contents[first:], run.places[first:], strict=True):
            begin, end = max(place, start), min(place + content.size_bytes, start + len(raw))
            if begin < end:
                values = content.decode(begin - place, raw[begin - start : end - start])
                block = content.tensor.dtype
                before = (begin - place) // block.block_bytes * block.block * numbers_per_value(block)
                self.add(content.tensor.name, before, values)
            elif place >= start + len(raw):
                break

    def add(self, name: str, before: int, values: NDArray[Any]) -> None:
        """Counts values of a tensor that has `before` numbers before them."""
        wrong = np.flatnonzero(~np.isfinite(values))
        if not len(wrong):
            return
        nan = int(np.count_nonzero(np.isnan(values[wrong])))
        here = (before + int(wrong[0]), float(values[wrong[0]]))
        with self._lock:
            nans, infs, *earlier = self._counts.get(name, (0, 0, *here))
            first = here if here[0] <= earlier[0] else (int(earlier[0]), earlier[1])
            self._counts[name] = (nan + nans, len(wrong) - nan + infs, *first)

    def of(self, tensors: Sequence[StoredTensor]) -> tuple[NonFinite, ...]:
        """In the order of these tensors."""
        return tuple(_named(tensor, *self._counts[tensor.name]) for tensor in tensors if tensor.name in self._counts)


def _named(tensor: StoredTensor, nan: int, inf: int, number: int, value: float) -> NonFinite:
    place = np.unravel_index(number // numbers_per_value(tensor.dtype), tensor.shape)
    return NonFinite(tensor.name, nan, inf, tuple(map(int, place)), value)
