"""What becomes of each tensor of a folder in a GGUF: its name there, the order of its values, the type of its blocks.

A file that llama.cpp would not load, or would compute something else with, is refused before anything is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from entrenar_core.architectures import Architecture, architecture_of
from entrenar_core.architectures.detection import Detection, constraints, detect, disagreements
from entrenar_core.conversion.content import same_values
from entrenar_core.conversion.gguf_families import GgufFamily, written_family
from entrenar_core.conversion.gguf_metadata import described, head_width, query_scale
from entrenar_core.conversion.gguf_names import Renamed, written
from entrenar_core.conversion.gguf_rope_writing import Turning, turning
from entrenar_core.errors import ModelError
from entrenar_core.formats.gguf_values import Value, texts
from entrenar_core.models.heads import CLASSIFICATION_HEADS
from entrenar_core.stored_model import StoredModel

_AGAIN = "fetch or export the model again"
_SHOWN = 3
_FLOATS = ("F64", "F32", "F16", "BF16")


class GgufModel:
    """A folder as llama.cpp will see it: its family, the names of its tensors there, and what describes it.

    Raises:
        ModelError: it is of no family that is written, a tensor is missing or does not fit, or llama.cpp computes
            something else than its settings say.
    """

    def __init__(self, model: StoredModel) -> None:
        name = str(model.reference)
        if model.config is None:
            raise ModelError(f"{name} has no config.json, which says how it computes", "name the folder that has it")
        self.model, self.config = model, model.config
        self.family = written_family(self.config, name)
        _require_own_weights(model, self.config)
        self.detection = _detected(model, self.family)
        _require_floats(model, self.detection)
        self.sizes = _sizes(self.config, self.detection)
        self.notes: list[str] = []
        self.classifies = _is_classifier(model, self.family)
        self.scale = query_scale(self.family, self.config, self.sizes)
        found = written(model.tensors, self.family, self.detection.prefix, self.sizes, self.scale)
        self.names = {tensor: renamed for tensor, renamed in found.items() if not self._left(tensor)}
        if self.classifies:
            self.names |= {tensor: Renamed(name) for tensor, name in self.family.classifier.items()}
        self._require_named()

    def describe(self, pool: str | None = None) -> dict[str, Value]:
        """The metadata of the model; what llama.cpp will do otherwise is added to the notes.

        Args:
            pool: how an encoder makes one vector of its tokens.

        Raises:
            ModelError: a setting has a value that llama.cpp cannot have.
        """
        said = described(self.family, self.config, self.sizes, "rank" if self.classifies else pool)
        self.notes += (*said.notes, *self.turning.notes)
        name = self.family.architecture
        labels = {"classifier.output_labels": texts(_labels(self.model, self.config))} if self.classifies else {}
        more = {**self.turning.metadata, **labels}
        return {**said.metadata, **{f"{name}.{key}": value for key, value in more.items()}}

    @cached_property
    def turning(self) -> Turning:
        """How positions are turned, with the tensors that this needs."""
        width = head_width(self.family, self.config, self.sizes)
        return turning(self.family, self.config, width, self.sizes.max_positions or 0)

    def _left(self, tensor: str) -> bool:
        """Whether llama.cpp needs no such tensor."""
        if self.classifies and tensor in self.family.classifier:
            return False
        inner = tensor.removeprefix(self.detection.prefix)
        return tensor in self._tied_away or any(fnmatchcase(inner, pattern) for pattern in self.family.leaves)

    @cached_property
    def _tied_away(self) -> frozenset[str]:
        """The head, where the configuration says that it is the embeddings and no other one is stored.

        Raises:
            ModelError: another one is stored, and llama.cpp has no place for it.
        """
        if self.family.setting(self.config, "tie_word_embeddings") is not True:
            return frozenset()
        embeddings = self.detection.embeddings
        if (
            "lm_head.weight" not in self.model.tensors
            or not embeddings
            or same_values(self.model, "lm_head.weight", embeddings[0])
        ):
            return frozenset({"lm_head.weight"})
        if "tie_word_embeddings" in self.family.only:
            raise ModelError(
                f"{self.model.reference} has a head of its own, and llama.cpp's {self.family.name} has none",
                "take another format for it: safetensors or onnx",
            )
        return frozenset()

    def _require_named(self) -> None:
        buffers = {*self.detection.buffers, *self.detection.companions}
        nameless = [
            tensor
            for tensor in self.model.tensors
            if tensor not in self.names and tensor not in buffers and not self._left(tensor)
        ]
        if nameless:
            raise ModelError(
                f"llama.cpp has no place for {_listed(nameless)} in a {self.family.name}",
                "take another format for it: safetensors or onnx",
            )
        given = [tensor for tensor in self.model.tensors if self._left(tensor) and tensor not in self._tied_away]
        if given:
            self.notes.append(f"llama.cpp has no use for {_listed(given)}: left out")
        if "lm_head.weight" in self.model.tensors or self.family.family.kind == "encoder" or self._tied_away:
            return
        raise ModelError(f"{self.model.reference} has no lm_head.weight, and its head is not tied", _AGAIN)


def _require_own_weights(model: StoredModel, config: Mapping[str, Any]) -> None:
    """Refuses weights that only another library's code reads, whatever their tensors look like.

    Raises:
        ModelError: they are quantised by another library.
    """
    method = config.get("quantization_config")
    if method:
        name = method.get("quant_method") if isinstance(method, Mapping) else method
        raise ModelError(
            f"{model.reference} is quantised by {name}, in a way that only its own library reads",
            "take the model that it was made of",
        )


def _require_floats(model: StoredModel, found: Detection) -> None:
    """Refuses weights that are no numbers of which llama.cpp has a kind.

    Raises:
        ModelError: a tensor that is more than a buffer has others.
    """
    for tensor in model.tensors.values():
        kind = tensor.dtype.kind
        if (
            tensor.name not in found.buffers
            and len(tensor.shape) > 1
            and kind != "quantised"
            and tensor.dtype.name not in _FLOATS
        ):
            raise ModelError(
                f"tensor {tensor.name} is stored as {tensor.dtype}, of which no GGUF is made",
                "take the model in 32 or 16 bits",
            )


def _detected(model: StoredModel, family: GgufFamily) -> Detection:
    found = detect({name: tensor.shape for name, tensor in model.tensors.items()})
    if found is None or family.name not in found.families:
        raise ModelError(f"the tensors of {model.reference} are not those of a {family.name}", _AGAIN)
    if found.missing:
        raise ModelError(f"{model.reference} lacks {_listed(found.missing)}", _AGAIN)
    if found.mismatched:
        odd = found.mismatched[0]
        raise ModelError(f"tensor {odd.name} has the shape {list(odd.shape)}, which does not fit the others", _AGAIN)
    return found


def _sizes(config: Mapping[str, Any], found: Detection) -> Architecture:
    """What config.json says, and the tensors where it does not.

    Raises:
        ModelError: they differ, or no model has such sizes.
    """
    said = architecture_of(config)
    wrong = (*disagreements(said, found, config=config), *constraints(said, found))
    if wrong:
        raise ModelError(wrong[0], "correct config.json, or fetch the model again")
    known = {
        size: getattr(said, size) or getattr(found.architecture, size)
        for size in ("num_layers", "hidden_size", "num_heads", "intermediate_size", "vocab_size", "max_positions")
    }
    return replace(said, **known, num_kv_heads=said.num_kv_heads or known["num_heads"])


def _is_classifier(model: StoredModel, family: GgufFamily) -> bool:
    """Whether it is a classifier of texts that llama.cpp has the head of.

    Raises:
        ModelError: it classifies something else, which llama.cpp does not.
    """
    own = [name for name in model.tensors if name.partition(".")[0] in CLASSIFICATION_HEADS]
    if not own:
        return False
    if not family.classifier or not set(family.classifier) <= set(model.tensors):
        what = "tokens" if family.classifier else "texts"
        raise ModelError(
            f"{model.reference} classifies {what}, and llama.cpp has no such head for a {family.name}",
            "take another format for it: safetensors or onnx",
        )
    return True


def _labels(model: StoredModel, config: Mapping[str, Any]) -> list[str]:
    """The names of the classes in their order, or their numbers where config.json names none."""
    count = model.tensors["classifier.weight"].shape[0]
    said = config.get("id2label")
    named = said if isinstance(said, Mapping) else {}
    return [str(named.get(str(place), named.get(place, f"LABEL_{place}"))) for place in range(count)]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
