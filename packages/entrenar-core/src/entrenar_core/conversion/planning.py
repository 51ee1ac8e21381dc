"""What becomes of each tensor of a model: copied, cast or dequantised, under which name, and what that changed."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import import_module
from typing import Any

from entrenar_core.architectures.detection import Detection, detect
from entrenar_core.conversion.apr_blocks import apr_blocks
from entrenar_core.conversion.casting import Roundings
from entrenar_core.conversion.content import as_it_is, cast, same_values
from entrenar_core.conversion.gguf_config import config_of
from entrenar_core.conversion.gguf_names import Renamed, family_of_gguf, renamed
from entrenar_core.conversion.gguf_rope import FACTORS, LONG, SHORT, rope_of
from entrenar_core.conversion.quantising import Quantiser
from entrenar_core.errors import ModelError
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.formats.writing import Outgoing
from entrenar_core.quantization.mixes import Mix
from entrenar_core.stored_model import StoredModel

HF_CONFIG = "hf_config"
"""The key under which an APR file holds the whole of config.json, where it is written here."""
_APR = (WeightFormat.APR, WeightFormat.APR_JSON)
_DEQUANTISED_TO = "F32"
_HEAD = "lm_head.weight"
_ROPE_TENSORS = (FACTORS, LONG, SHORT)
_MOST_FACTORS = 65_536


class Plan:
    """One conversion, to a format and perhaps a dtype or, into APR, to blocks. Its counts and notes fill while tensors
    are planned and written.

    Raises:
        ModelError: `outgoing` meets a tensor that the format has no dtype for.
    """

    def __init__(self, model: StoredModel, kind: WeightFormat, dtype: str | None, mix: Mix | None = None) -> None:
        self.model, self.kind, self.dtype, self.mix = model, kind, dtype, mix
        self.writes: Sequence[str] = import_module(f"entrenar_core.formats.{FORMATS[kind].writer}").WRITES
        self.roundings = Roundings()
        self.quantiser = Quantiser(self.roundings)
        self.dequantised: Counter[str] = Counter()
        self.copied = self.cast = 0
        self.notes: list[str] = []
        self.family = family_of_gguf(model.metadata) if model.format is WeightFormat.GGUF else None
        self.names = None if self.family is None else renamed(model.metadata, self.family, model.tensors)
        if model.format is WeightFormat.GGUF and self.family is None:
            self.notes.append("tensors keep the names that llama.cpp gives them, which transformers does not load")

    @cached_property
    def outgoing(self) -> Sequence[Outgoing]:
        """Every tensor as it is written, the widest dtypes first, so that each lies at a multiple of its size."""
        kept = [tensor for tensor in self.model.tensors.values() if not self._dropped(tensor)]
        return [self._one(tensor) for tensor in sorted(kept, key=lambda one: -self._wanted(one).block_bytes)]

    def require_blocks(self) -> None:
        """Tells of matrices that the blocks do not divide.

        Raises:
            ModelError: there are no others.
        """
        if self.mix is None:
            return
        matrices = [tensor for tensor in self.outgoing if len(tensor.shape) == 2]
        left = sum(tensor.dtype.kind != "quantised" for tensor in matrices)
        if left == len(matrices):
            raise ModelError(
                f"none of its {left} matrices has rows that blocks of {self.mix.base} divide",
                "take --dtype bf16, or a GGUF, which has blocks of 32",
            )
        if left:
            self.notes.append(
                f"{left} of {len(matrices)} matrices are not quantised: blocks of 256 do not divide their rows"
            )

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """What config.json says; of a GGUF what it would, of an APR what it said once."""
        if self.model.format in _APR:
            kept = self.model.metadata.get(HF_CONFIG)
            return kept if isinstance(kept, Mapping) else self.model.config
        if self.family is None:
            return self.model.config
        stored = [self.model.tensors[name] for name in _ROPE_TENSORS if name in self.model.tensors]
        for tensor in stored:
            if tensor.values > _MOST_FACTORS:
                raise ModelError(
                    f"tensor {tensor.name} has {tensor.values:,} factors of positions, more than any head is wide",
                    "convert the file with the program that wrote it",
                )
        factors = {tensor.name: self.model.array(tensor.name).tolist() for tensor in stored}
        rope = rope_of(self.model.metadata, factors)
        tied = "output.weight" not in self.model.tensors
        found = config_of(self.model.metadata, self.family, tied=tied, rope=rope)
        return found | {key: True for key, name in self.family.biases.items() if name in self.model.tensors}

    @property
    def written_dtype(self) -> str | None:
        """The one dtype that all weights are written in, if they were made to have one."""
        return self.dtype or (_DEQUANTISED_TO if self.family is not None else None)

    def require_kept(self) -> None:
        """Refuses what became infinite on the way.

        Raises:
            ModelError: a value is too large for the dtype.
        """
        self.roundings.all.require_finite(str(self.dtype), "take --dtype bf16 or fp32, which hold them")

    def _dropped(self, tensor: StoredTensor) -> bool:
        """What only llama.cpp has, and a buffer that the format has no dtype for, is told of and left out."""
        if self.names is not None and tensor.name in _ROPE_TENSORS:
            return True  # they are in the configuration
        if self.names is not None and tensor.name not in self.names:
            self.notes.append(f"{tensor.name} has no name in transformers, and is left out")
            return True
        if tensor.dtype.kind == "integer" and tensor.dtype.name not in self.writes and tensor.name in self._buffers:
            self.notes.append(f"{tensor.name} is no weight, and is left out: models make it anew")
            return True
        if tensor.name == _HEAD and self._tied:
            self.notes.append(f"{tensor.name} is the embeddings over again, and is left out: models tie them")
            return True
        return False

    @cached_property
    def _tied(self) -> bool:
        """Whether the head is the embeddings, by what config.json says and by its values."""
        config = self.model.config or {}
        if config.get("tie_word_embeddings") is not True or self._detected is None or not self._detected.embeddings:
            return False
        return same_values(self.model, _HEAD, self._detected.embeddings[0])

    @cached_property
    def _buffers(self) -> frozenset[str]:
        """What older files hold besides weights."""
        return frozenset(self._detected.buffers) if self._detected is not None else frozenset()

    @cached_property
    def _detected(self) -> Detection | None:
        return detect({name: tensor.shape for name, tensor in self.model.tensors.items()})

    def _one(self, tensor: StoredTensor) -> Outgoing:
        wanted = self._wanted(tensor)
        if wanted.kind == "quantised" and wanted != tensor.dtype:
            self.cast += 1
            return self.quantiser.outgoing(self.model, tensor, wanted, name=tensor.name)
        named = Renamed(tensor.name) if self.names is None else self.names[tensor.name]
        if wanted == tensor.dtype and named.changed.layout is None:
            self.copied += 1
            return as_it_is(self.model, tensor, named.name)
        if tensor.dtype.kind == "quantised":
            self.dequantised[tensor.dtype.name] += 1
        else:
            self.cast += 1
        return cast(
            self.model,
            tensor,
            wanted,
            self.roundings.of(tensor.name),
            name=named.name,
            change=named.undone(tensor.shape),
        )

    def _wanted(self, tensor: StoredTensor) -> Dtype:
        """The dtype that a tensor is written in."""
        kind = tensor.dtype.kind
        if self.mix is not None and (blocks := apr_blocks(tensor.name, tensor.shape, self.mix)) is not None:
            return blocks
        wanted = DTYPES[self.dtype] if self.dtype and kind in ("float", "quantised") else tensor.dtype
        if kind == "quantised" and (wanted.name not in self.writes or (self.names is not None and not self.dtype)):
            wanted = DTYPES[_DEQUANTISED_TO]
        if wanted.name not in self.writes:
            raise ModelError(
                f"{FORMATS[self.kind].title} has no {wanted}, which tensor {tensor.name} is stored in",
                f"it has {', '.join(self.writes)}: take another --to, or cast floats with --dtype",
            )
        return wanted
