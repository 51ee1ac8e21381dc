"""What becomes of each tensor of a model in a GGUF: the type of its blocks, its bytes, and what that changed."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from entrenar_core.conversion.casting import Roundings
from entrenar_core.conversion.content import as_it_is, cast
from entrenar_core.conversion.gguf_names import Renamed
from entrenar_core.conversion.quantising import Quantiser
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.gguf_values import Value, text, u32
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.formats.writing import Outgoing
from entrenar_core.quantization.choosing import MixedModel, dtypes_of, in_order, needs_importance
from entrenar_core.quantization.encoding import writable_here
from entrenar_core.quantization.mixes import Mix
from entrenar_core.stored_model import StoredModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from entrenar_core.importance import ImportanceMatrix

_QUANTISATION_VERSION = 2  # of ggml's blocks


class GgufPlan:
    """One model on its way to a GGUF. Its counts and notes fill while tensors are planned and written.

    Args:
        names: what each tensor that is written is called there, and what is done to its values.
        factors: tensors that the model has besides, such as those that stretch positions.
        importance: how much the inputs of each matrix count.
    """

    kind = WeightFormat.GGUF
    dtype = None
    written_dtype = None

    def __init__(
        self,
        model: StoredModel,
        mix: Mix,
        names: Mapping[str, Renamed],
        metadata: Mapping[str, Value],
        *,
        factors: Mapping[str, Sequence[float]] | None = None,
        importance: "ImportanceMatrix | None" = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.model, self.mix, self.names, self.importance = model, mix, names, importance
        self.factors = factors or {}
        self.roundings = Roundings()
        self.quantiser = Quantiser(self.roundings)
        self.dequantised: Counter[str] = Counter()
        self.copied = self.cast = 0
        self.notes = list(notes)
        version = {"general.quantization_version": u32(_QUANTISATION_VERSION)} if mix.quantised else {}
        told = {} if importance is None else _told(importance)
        self.metadata = {**metadata, "general.file_type": u32(mix.file_type), **version, **told}

    @cached_property
    def outgoing(self) -> Sequence[Outgoing]:
        """Every tensor as it is written, in the order of llama.cpp's files.

        Raises:
            ModelError: a tensor cannot be cut into blocks, or the importance matrix is of another model.
            UsageError: a type needs ggml or an importance matrix, which is not there.
        """
        stored = {renamed.name: (self.model.tensors[name], renamed) for name, renamed in self.names.items()}
        shapes = {name: renamed.shape(tensor.shape) for name, (tensor, renamed) in stored.items()}
        asked = dtypes_of(self._mixed(shapes), self.mix, importance=self.importance is not None)
        dtypes = writable_here(asked, self.mix, importance=self.importance is not None)
        self._require_weighed(shapes, dtypes)
        self._require_blocks(shapes, dtypes)
        if wider := sum(dtypes[name] != dtype for name, dtype in asked.items()):
            self.notes.append(
                f"without ggml's own routine {wider} of its tensors are Q8_0, where llama.cpp has smaller types: "
                "`pip install 'entrenar[xllamacpp]'`"
            )
        extra = {name: _listed(name, values) for name, values in self.factors.items()}
        every = in_order([*shapes, *extra])
        return [extra[name] if name in extra else self._one(*stored[name], dtypes[name]) for name in every]

    def _require_blocks(self, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, Dtype]) -> None:
        """Tells of matrices whose rows the blocks of the mix do not divide."""
        if not self.mix.quantised:
            return
        matrices = {name: shape[-1] for name, shape in shapes.items() if len(shape) > 1}
        if not any(dtypes[name].kind == "quantised" for name in matrices):
            raise ModelError(
                f"none of its {len(matrices)} matrices has rows that blocks of {self.mix.base}, or of 32, divide",
                "take --quantize bf16 or f16",
            )
        block = self.mix.base.block
        odd = [name for name, row in matrices.items() if row % block and dtypes[name].name != "F32"]
        if odd:
            self.notes.append(
                f"blocks of {block} do not divide the rows of {len(odd)} of {len(matrices)} matrices: they are "
                f"{_types(dtypes[name].name for name in odd)}, as llama.cpp has it"
            )

    def _require_weighed(self, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, Dtype]) -> None:
        self._require_of_this_model(shapes, dtypes)
        for name, dtype in dtypes.items():
            if needs_importance(name, dtype, self.mix) and self._weights(name, shapes[name], dtype) is None:
                raise ModelError(
                    f"{self.mix.name} needs importances of every matrix, and there are none of {name}",
                    "compute them with --calibration, or take q2_k",
                )

    def _require_of_this_model(self, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, Dtype]) -> None:
        """An importance matrix that nothing is weighed by is of another model, or of no use."""
        if self.importance is None:
            return
        blocks = [name for name, dtype in dtypes.items() if _weighable(dtype)]
        if not blocks:
            self.notes.append("no tensor is of a type that importances change")
        elif all(self._weights(name, shapes[name], dtypes[name]) is None for name in blocks):
            raise ModelError(
                f"the importance matrix has none of the {len(blocks)} matrices of {self.model.reference}",
                "take the matrix that was made with this model, or compute one with --calibration",
            )

    def forget_origin(self) -> None:
        """Leaves out where the model is from; what programs need to run it stays."""
        needed = ("general.architecture", "general.type", "general.file_type", "general.quantization_version")
        self.metadata = {
            key: value
            for key, value in self.metadata.items()
            if key in needed or not key.startswith(("general.", "quantize.imatrix."))
        }

    def require_kept(self) -> None:
        """Refuses what became infinite on the way.

        Raises:
            ModelError: a value is too large for the type.
        """
        self.roundings.all.require_finite(self.mix.name, "take bf16 or f32, which hold them")

    def _mixed(self, shapes: Mapping[str, tuple[int, ...]]) -> MixedModel:
        name = self.metadata["general.architecture"].value
        return MixedModel(
            str(name),
            _count(self.metadata.get(f"{name}.block_count")),
            _count(self.metadata.get(f"{name}.attention.head_count")),
            _count(self.metadata.get(f"{name}.attention.head_count_kv")),
            shapes,
            _count(self.metadata.get(f"{name}.expert_count")),
        )

    def _weights(self, name: str, shape: tuple[int, ...], dtype: Dtype) -> "NDArray[Any] | None":
        """How much each place of a row of a tensor counts, where that changes anything."""
        if self.importance is None or not _weighable(dtype):
            return None
        found = self.importance.means(name, shape[-1])
        return None if found is None else found[0]

    def _one(self, tensor: StoredTensor, renamed: Renamed, dtype: Dtype) -> Outgoing:
        change = renamed.changed.written(tensor.name, tensor.shape)
        if dtype == tensor.dtype and change is None:
            self.copied += 1
            return as_it_is(self.model, tensor, renamed.name)
        if tensor.dtype.kind == "quantised":
            self.dequantised[tensor.dtype.name] += 1
        else:
            self.cast += 1
        if dtype.kind != "quantised":
            return cast(self.model, tensor, dtype, self.roundings.of(tensor.name), name=renamed.name, change=change)
        weights = self._weights(renamed.name, renamed.shape(tensor.shape), dtype)
        return self.quantiser.outgoing(self.model, tensor, dtype, name=renamed.name, change=change, importance=weights)


def _weighable(dtype: Dtype) -> bool:
    """Whether blocks of this type are chosen otherwise where some inputs count more."""
    return dtype.kind == "quantised" and dtype.name != "Q8_0"


def _types(names: Iterable[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in Counter(names).most_common())


def _told(importance: "ImportanceMatrix") -> dict[str, Value]:
    """What llama.cpp's quantiser says of an importance matrix."""
    found = {"entries_count": u32(len(importance.inputs)), "chunks_count": u32(importance.chunk_count)}
    if importance.datasets:
        found["dataset"] = text(", ".join(importance.datasets))
    return {f"quantize.imatrix.{key}": value for key, value in found.items()}


def _count(value: Value | None) -> int:
    found = None if value is None else value.value
    return found if isinstance(found, int) else 0


def _listed(name: str, values: Sequence[float]) -> Outgoing:
    """A tensor of a few numbers that are written out."""
    import struct

    def chunks() -> Iterator[bytes]:
        yield struct.pack(f"<{len(values)}f", *values)

    return Outgoing(name, DTYPES["F32"], (len(values),), chunks)
