"""An adapter from its files: which module each of its tensors belongs to, and what part it has there.

Names are peft's: `base_model.model.` before the name of a module in the base model, `.lora_A.weight` and the like after
it. Without a configuration beside it, ranks are those of the shapes; an alpha is never guessed. What is named in no
known way is an error: a merge that leaves a tensor out would be a wrong one.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from entrenar_core.adapters.settings import MOST, AdapterSettings, settings_of
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.names import shown
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.references import HubReference, Reference
from entrenar_core.stored_model import ADAPTERS, StoredModel, open_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LABELS = "label_names"
"""In the metadata of an adapter's file: the classes of its head, for which peft has no place."""
PREFIX = "base_model.model."
"""What peft puts before the names of the base model."""
CONFIG_KEY = "adapter_config"
"""Where a file of tensors alone says what adapter_config.json would."""
_PARTS = re.compile(
    r"^(?P<module>.+?)\.(?:"
    r"(?P<embedding>lora_embedding_[AB])(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
    r"|(?P<matrix>lora_[AB])(?:\.(?!weight$|bias$)[^.]+)?\.(?P<kind>weight|bias)"
    r")$"
)
_SHOWN = 3
Part = Literal["down", "up", "magnitude", "up_bias"]


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


def open_adapter(
    reference: Reference,
    *,
    alpha: float | None = None,
    rslora: bool = False,
    file: str | None = None,
    allow_pickle: bool = False,
) -> Adapter:
    """Opens a LoRA adapter: a folder as peft saves it, or a file of its tensors.

    Args:
        alpha: of an adapter whose files do not say it.
        rslora: whether the scale of such an adapter is α / √r.
        file: which file to take where there are several.
        allow_pickle: whether a PyTorch file is read. Nothing in it is run.

    Raises:
        NotFoundError: there is no such file or folder.
        UsageError: `alpha` or `rslora` contradicts its files.
        ModelError: it is no LoRA adapter, its settings are broken, or its tensors do not belong together.
    """
    model = open_model(reference, file=file or _own_file(reference), allow_pickle=allow_pickle)
    try:
        if not model.is_here:
            raise ModelError(f"the values of {reference} are not here", f"fetch it: `hf download {reference}`")
        return adapter_of(model, alpha=alpha, rslora=rslora)
    except BaseException:
        model.close()
        raise


def _own_file(reference: Reference) -> str | None:
    """The weights of the adapter in a folder that may hold those of models, too."""
    if isinstance(reference, HubReference):
        return None
    folder = reference.locate()
    return next((name for name in ADAPTERS if (folder / name).is_file()), None) if folder.is_dir() else None


def adapter_of(model: StoredModel, *, alpha: float | None = None, rslora: bool = False) -> Adapter:
    """The same of a model that is open already; raises as `open_adapter`."""
    if model.format is WeightFormat.GGUF:
        if model.metadata.get("general.type") != "adapter":
            raise ModelError(f"{model.reference} is a model and no adapter", "name the folder that peft saved")
        raise ModelError(
            f"{model.reference} is an adapter as llama.cpp has it",
            "convert it first: `entrenar-lora convert ADAPTER --to peft --output DIR`",
        )
    settings, inferred = _settings(model, alpha, rslora)
    if settings.method != "LORA":
        raise ModelError(
            f"{model.reference} is an adapter of the method {settings.method}, which has no low-rank matrices",
            "load it with peft",
        )
    found = _sorted(model)
    if not found.parts:
        raise ModelError(f"{model.reference} has no tensors of a LoRA adapter", "name the folder that peft saved")
    pairs = tuple(
        _pair(model, module, parts, settings, embedding=module in found.embeddings)
        for module, parts in found.parts.items()
    )
    if settings.rank is None:
        ranks = sorted({pair.rank for pair in pairs})
        inferred.append(f"the rank is {', '.join(map(str, ranks))}, as the shapes of its matrices say")
    dora = any(pair.magnitude is not None for pair in pairs)
    if settings.dora and (bare := next((pair.module for pair in pairs if pair.magnitude is None), None)):
        raise ModelError(
            f"{model.reference}: it is DoRA, as its settings say, and {bare} has no magnitudes",
            "the adapter is damaged: save it again",
        )
    if dora and not settings.dora:
        inferred.append("it is DoRA, as its magnitudes say")
    return Adapter(model, replace(settings, dora=dora or settings.dora), pairs, found.whole, tuple(inferred))


def _settings(model: StoredModel, alpha: float | None, rslora: bool) -> tuple[AdapterSettings, list[str]]:
    """What the files say, else the command line, and what of it is inferred."""
    broken = next(
        (fault for fault in model.faults if fault.about == "settings" and "adapter_config" in fault.message), None
    )
    if broken is not None:
        raise ModelError(broken.message, "save the adapter again")
    settings, inferred = _of_files(model)
    if alpha is not None and settings.alpha is not None and settings.alpha != alpha:
        raise UsageError(
            f"--alpha {alpha:g}: the adapter's own files say {settings.alpha:g}",
            "leave it out; to weaken or strengthen an adapter there is --scale",
        )
    if alpha is not None and not 0 < alpha < MOST:
        raise UsageError(f"--alpha {alpha:g} is no alpha", "give the number above 0 that it was trained with")
    if rslora and settings.said and not settings.rslora:
        raise UsageError("--rslora: the adapter's own configuration says otherwise", "leave it out")
    if alpha is not None and settings.alpha is None:
        inferred.append(f"alpha is {alpha:g}, as --alpha says")
        settings = replace(settings, alpha=alpha)
    return replace(settings, rslora=settings.rslora or rslora), inferred


def _of_files(model: StoredModel) -> tuple[AdapterSettings, list[str]]:
    """What the files say alone."""
    if model.adapter_config is not None:
        return settings_of(model.adapter_config, f"{model.reference}: adapter_config.json"), []
    inside = _config_inside(model)
    if inside is not None:
        found = settings_of(inside, f"{model.reference}: the settings in its metadata")
        return found, ["its settings are those in the metadata of the file"]
    inferred = ["there is no adapter_config.json beside it"]
    told = _number(model.metadata.get("lora_alpha", model.metadata.get("alpha")))
    if told is None:
        return AdapterSettings(), inferred
    return AdapterSettings(alpha=told), [*inferred, f"alpha is {told:g}, as the file's metadata says"]


def _config_inside(model: StoredModel) -> Mapping[str, Any] | None:
    """The settings that a file of tensors holds itself, where `convert` wrote it."""
    said = model.metadata.get(CONFIG_KEY)
    if said is None:
        return None
    try:
        found = json.loads(str(said))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"{model.reference}: `{CONFIG_KEY}` in its metadata is no JSON table", "save it again")
    return found


def _number(text: object) -> float | None:
    try:
        found = float(str(text))
    except ValueError:
        return None
    return found if 0 < found < 1e9 else None


@dataclass(slots=True)
class _Sorted:
    """The tensors of each module, those that stand for the base's own, which modules are embeddings, and the names that
    mean none of this.
    """

    parts: dict[str, dict[Part, StoredTensor]] = field(default_factory=dict)
    whole: dict[str, StoredTensor] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    strange: list[str] = field(default_factory=list)

    def add(self, name: str, tensor: StoredTensor) -> None:
        """Puts a tensor where it belongs."""
        found = _PARTS.match(name)
        if found is None:
            self._add_whole(name, tensor)
            return
        module, part = _of_base(found["module"].removeprefix(PREFIX)), _part(found)
        if found["embedding"]:
            self.embeddings.add(module)
        own = self.parts.setdefault(module, {})
        if part is None or part in own:
            self.strange.append(name)
        else:
            own[part] = tensor

    def _add_whole(self, name: str, tensor: StoredTensor) -> None:
        own = name.removeprefix(PREFIX)
        if "lora_" in name or "trainable_tokens" in name or own == name:
            self.strange.append(name)
        elif ".original_module." not in own:  # what the base had before, which peft saves where all biases train
            self.whole.setdefault(_of_base(own), tensor)


def _sorted(model: StoredModel) -> _Sorted:
    found = _Sorted()
    for name, tensor in model.tensors.items():
        found.add(name, tensor)
    if strange := found.strange:
        more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
        raise ModelError(
            f"{model.reference} has tensors that are no part of a LoRA adapter as peft names them: "
            f"{', '.join(shown(name) for name in strange[:_SHOWN])}{more}",
            "save it again with peft, which knows how they are meant",
        )
    return found


def _of_base(name: str) -> str:
    """A name in the base model: wrappers that peft puts around modules are left out."""
    return re.sub(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.|$)", "", name)


def _part(found: re.Match[str]) -> Part | None:
    if found["magnitude"]:
        return "magnitude"
    matrix = found["embedding"] or found["matrix"]
    if found["kind"] == "bias":
        return "up_bias" if matrix.endswith("B") else None
    return "down" if matrix.endswith("A") else "up"


def _pair(
    model: StoredModel, module: str, parts: Mapping[Part, StoredTensor], settings: AdapterSettings, *, embedding: bool
) -> Pair:
    if "down" not in parts or "up" not in parts:
        raise ModelError(
            f"{model.reference}: {module} has {'no A' if 'down' not in parts else 'no B'}", "save the adapter again"
        )
    down, up = parts["down"], parts["up"]
    if len(down.shape) != 2 or len(up.shape) != 2 or 0 in (*down.shape, *up.shape):
        raise ModelError(
            f"{model.reference}: the matrices of {module} are {_by(down)} and {_by(up)}, which are not two matrices",
            "adapters of convolutions are not read; save it again if it has none",
        )
    rank = down.shape[0]
    if up.shape[1] != rank:
        raise ModelError(
            f"{model.reference}: the matrices of {module} are {_by(up)} and {_by(down)}, which have no product",
            "the adapter is damaged: save it again",
        )
    said = settings.rank_of(module)
    if said is not None and said != rank:
        raise ModelError(
            f"{model.reference}: adapter_config.json says rank {said} of {module}, and its matrices have {rank}",
            "the settings belong to another adapter: take those that were saved with it",
        )
    scale = settings.scale(module, rank)
    magnitude, up_bias = parts.get("magnitude"), parts.get("up_bias")
    return Pair(module, down, up, rank, settings.alpha_of(module), scale, embedding, magnitude, up_bias)


def _by(tensor: StoredTensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a number"


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
