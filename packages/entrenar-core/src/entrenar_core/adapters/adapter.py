"""An open LoRA adapter: the matrices of each module, and what stands in place of the base's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from entrenar_core.adapters.settings import AdapterSettings
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.formats.names import shown
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Pair:
    """The matrices of one module: of a linear one `down` is A, (r, in), and `up` is B, (out, r); of an embedding A is
    (r, rows) and B (width, r), and the product lies transposed.

    `alpha` and `scale` are None where the files do not say the alpha. `magnitude` is DoRA's length of each row of the
    merged matrix, and `up_bias` what B adds.
    """

    module: str
    down: StoredTensor
    up: StoredTensor
    rank: int
    alpha: float | None
    scale: float | None
    embedding: bool = False
    magnitude: StoredTensor | None = None
    up_bias: StoredTensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of a linear module's change, (rows, width) of an embedding's."""
        up, down = self.up.shape[0], self.down.shape[1]
        return (down, up) if self.embedding else (up, down)

    @property
    def parameters(self) -> int:
        """Of all its tensors."""
        return sum(one.values for one in (self.down, self.up, self.magnitude, self.up_bias) if one is not None)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An open adapter. `whole` are tensors that stand in place of the base model's, by the names that they have there:
    those of `modules_to_save`, and biases. `inferred` says, a sentence each, what its files leave open and is told
    from the tensors or the command line.
    """

    model: StoredModel
    settings: AdapterSettings
    pairs: tuple[Pair, ...]
    whole: Mapping[str, StoredTensor]
    inferred: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What errors call it."""
        return str(self.model.reference)

    @property
    def parameters(self) -> int:
        """Of all its tensors."""
        return self.model.values

    def values(self, tensor: StoredTensor) -> "NDArray[np.float32]":
        """The values of one of its tensors in its shape, as a copy in float32.

        Raises:
            ModelError: they cannot be read, or are not all finite.
        """
        import numpy as np

        found = np.array(self.model.array(tensor.name), dtype=np.float32)
        if not np.isfinite(found).all():
            raise ModelError(
                f"{self.name}: tensor {shown(tensor.name)} holds {int((~np.isfinite(found)).sum()):,} values that are "
                "not finite",
                "train the adapter again, or take an earlier checkpoint of it",
            )
        return found

    def close(self) -> None:
        """Lets go of its files."""
        self.model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_scales(adapter: Adapter) -> None:
    """Refuses an adapter whose alpha is not known, for what cannot do without.

    Raises:
        UsageError: it is not.
    """
    unknown = next((pair for pair in adapter.pairs if pair.scale is None), None)
    if unknown is not None:
        raise UsageError(
            f"{adapter.name} does not say its alpha, and so not what its matrices are multiplied by",
            "give --alpha as it was trained, or put its adapter_config.json beside it",
        )


def as_matrix(values: Any, pair: Pair) -> Any:
    """A product of B and A as it lies in the base model's weight."""
    return values.T if pair.embedding else values
