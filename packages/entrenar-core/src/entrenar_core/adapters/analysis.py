"""What an adapter does to each module that it changes: how large, in how many directions, and which modules stand out.

Two criteria are ours. A module is dead where its change is nothing beside the others': all zeros, or shorter than a
millionth of the median. It explodes where its spectral norm is more than ten times the median over modules of its kind,
or where its change is longer than the matrix that it changes: training moves modules of a kind by amounts of one order,
and a change beyond the weights themselves has replaced them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod, sqrt
from statistics import median
from typing import TYPE_CHECKING, Literal

from entrenar_core.adapters.adapter import Adapter, Pair, require_scales
from entrenar_core.adapters.against_base import BesideBase, IntruderSearch, beside_base
from entrenar_core.adapters.base import BaseWeights
from entrenar_core.adapters.spectrum import Spectrum, spectrum_of
from entrenar_core.errors import ModelError
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.threads import keeping_torch_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEAD = 1e-6
EXPLODING = 10.0
_THREADS, _LARGE = 2, 1 << 26
Fate = Literal["dead", "exploding"]


@dataclass(frozen=True, slots=True)
class ModuleFigures:
    """One module. Its place is `stack`, `layer` and `kind`: of `encoder.block.3.layer.0.SelfAttention.q` these are
    `encoder.block`, 3 and `layer.0.SelfAttention.q`; outside of layers `layer` is None.

    `spectrum` is that of the change at its scale, or of B · A alone where the scale is not known. `zeros_down` and
    `zeros_up` are the shares of exact zeros of A and B, `down` and `up` their Frobenius norms.
    """

    module: str
    stack: str
    layer: int | None
    kind: str
    shape: tuple[int, int]
    rank: int
    alpha: float | None
    scale: float | None
    parameters: int
    dtypes: tuple[str, ...]
    spectrum: Spectrum
    zeros_down: float
    zeros_up: float
    down: float
    up: float
    values_down: int
    values_up: int
    base: BesideBase | None = None
    fate: Fate | None = None
    reason: str | None = None

    @property
    def utilization(self) -> float:
        """The effective rank over the rank."""
        return self.spectrum.effective_rank / self.rank


@dataclass(frozen=True, slots=True)
class AdapterAnalysis:
    """Every module, in the order of the layers; `scaled` says whether all their scales are known."""

    modules: tuple[ModuleFigures, ...]
    scaled: bool

    @property
    def effective_rank(self) -> float:
        """The mean over modules that do anything."""
        alive = self.alive
        return sum(one.spectrum.effective_rank for one in alive) / len(alive) if alive else 0.0

    @property
    def utilization(self) -> float:
        """The mean, over the same modules, of the effective rank over the rank."""
        alive = self.alive
        return sum(one.utilization for one in alive) / len(alive) if alive else 0.0

    @property
    def sparsity(self) -> float:
        """The share of exact zeros in all matrices A and B."""
        total = sum(one.values_down + one.values_up for one in self.modules)
        return sum(_zeros(one) for one in self.modules) / total if total else 0.0

    @property
    def unused(self) -> int:
        """How many directions of all modules do nothing."""
        return sum(one.spectrum.unused for one in self.modules)

    @property
    def frobenius(self) -> float:
        """The length of all changes together."""
        return sqrt(sum(one.spectrum.frobenius**2 for one in self.modules))

    @property
    def relative(self) -> float | None:
        """That length, or of DoRA the real one, over the length of all matrices that are changed."""
        return relative_of(self.modules)

    @property
    def alive(self) -> tuple[ModuleFigures, ...]:
        return tuple(one for one in self.modules if one.fate != "dead")


def relative_of(modules: Sequence[ModuleFigures]) -> float | None:
    """The length of the changes of some modules over that of their matrices; None without a base."""
    found = [one.base for one in modules if one.base is not None]
    length = sqrt(sum(one.weight**2 for one in found))
    return sqrt(sum(one.change**2 for one in found)) / length if length else None


def analyse(
    adapter: Adapter,
    *,
    base: BaseWeights | None = None,
    search: IntruderSearch | None = None,
    progress: Callable[[int], None] | None = None,
) -> AdapterAnalysis:
    """Computes the figures of every module, two modules at a time; with a base, one where its matrices are large.

    Args:
        base: the model that the adapter is for.
        search: how to look for intruder dimensions in it; None to leave that out.
        progress: is told how many modules more are done.

    Raises:
        UsageError: with a base, where the adapter does not say its alpha.
        ModelError: its values are not finite, or the base is another one.
    """
    if base is not None:
        require_scales(adapter)
        _require_base(adapter, base)

    def figures(pair: Pair) -> ModuleFigures:
        found = _figures(adapter, pair, base, search)
        if progress is not None:
            progress(1)
        return found

    large = base is not None and any(prod(pair.shape) > _LARGE for pair in adapter.pairs)
    with _workers(1 if large else _THREADS) as pool:
        found = list(pool.map(figures, adapter.pairs))
    ordered = sorted(found, key=lambda one: (one.layer is None, one.stack, one.layer or 0))
    scaled = all(one.scale is not None for one in ordered)
    return AdapterAnalysis(tuple(map(partial(_judged, _Typical.of(ordered)), ordered)), scaled)


@contextmanager
def _workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that each compute by themselves."""
    import torch

    with (
        keeping_torch_threads(),
        ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        yield pool


def place_of(module: str) -> tuple[str, int | None, str]:
    """Its stack of layers, the number of the layer, and what it is inside of it."""
    parts = module.split(".")
    at = next((at for at, part in enumerate(parts) if part.isdecimal() and part.isascii() and len(part) < 10), None)
    if at is None:
        return "", None, module
    return ".".join(parts[:at]), int(parts[at]), ".".join(parts[at + 1 :])


def _require_base(adapter: Adapter, base: BaseWeights) -> None:
    """All modules are looked up before the first is computed."""
    for pair in adapter.pairs:
        base.tensor(pair.module, shape=pair.shape)
    if not base.base.is_here:
        raise ModelError(
            f"the values of {base.base.reference} are not here", f"fetch it: `hf download {base.base.reference}`"
        )


def _figures(adapter: Adapter, pair: Pair, base: BaseWeights | None, search: IntruderSearch | None) -> ModuleFigures:
    import numpy as np

    down, up = adapter.values(pair.down), adapter.values(pair.up)
    spectrum = spectrum_of(down, up, 1.0 if pair.scale is None else pair.scale)
    stack, layer, kind = place_of(pair.module)
    return ModuleFigures(
        pair.module,
        stack,
        layer,
        kind,
        pair.shape,
        pair.rank,
        pair.alpha,
        pair.scale,
        pair.parameters,
        _dtypes(pair.down, pair.up),
        spectrum,
        1 - np.count_nonzero(down) / down.size,
        1 - np.count_nonzero(up) / up.size,
        _length(down),
        _length(up),
        down.size,
        up.size,
        None if base is None else beside_base(adapter, pair, base, spectrum, search),
    )


def _length(matrix: "NDArray[np.float32]") -> float:
    import numpy as np

    return float(np.linalg.norm(matrix.astype(np.float64)))


def _dtypes(*tensors: StoredTensor) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tensor.dtype.name for tensor in tensors))


def _zeros(one: ModuleFigures) -> float:
    """How many values of its matrices are zero."""
    return one.zeros_down * one.values_down + one.zeros_up * one.values_up


@dataclass(frozen=True, slots=True)
class _Typical:
    """The medians that a module is held against: of all lengths, and of the spectral norms of each kind."""

    length: float
    spectral: Mapping[str, float]

    @classmethod
    def of(cls, modules: Sequence[ModuleFigures]) -> "_Typical":
        alive = [one for one in modules if one.spectrum.spectral > 0]
        kinds: dict[str, list[float]] = {}
        for one in alive:
            kinds.setdefault(_kind(one), []).append(one.spectrum.spectral)
        lengths = [one.spectrum.frobenius for one in alive]
        return cls(median(lengths) if lengths else 0.0, {kind: median(found) for kind, found in kinds.items()})


def _kind(one: ModuleFigures) -> str:
    """What modules of other layers, and of other stacks, have in common with it."""
    return one.kind.rpartition(".")[2]


def _judged(typical: _Typical, one: ModuleFigures) -> ModuleFigures:
    fate, reason = _fate(typical, one)
    return one if fate is None else replace(one, fate=fate, reason=reason)


def _fate(typical: _Typical, one: ModuleFigures) -> tuple[Fate | None, str | None]:
    length = one.spectrum.frobenius
    if length == 0:
        which = "B is all zeros" if one.up == 0 else "A is all zeros" if one.down == 0 else "B · A is zero"
        return "dead", which
    if length < DEAD * typical.length:
        return "dead", f"its change is {length / typical.length:.1e} of the median"
    ratio = one.spectrum.spectral / typical.spectral[_kind(one)]
    if ratio > EXPLODING:
        return "exploding", f"its spectral norm is {ratio:,.0f} times the median of its kind"
    if one.base is not None and one.base.relative is not None and one.base.relative > 1:
        return "exploding", f"its change is {one.base.relative:.2g} times as long as the matrix"
    return None, None
