"""Teachers and students from files on this machine: whole, or not at all.

transformers loads what it can and fills the rest with random numbers. Here only a new classification head (and the
pooler below it) may be random; any other weight that is missing, left over or of another shape is an error.
"""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from entrenar_core.architectures.detection import detect
from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.models.heads import (
    CAUSAL_LM,
    CLASSIFICATION,
    CLASSIFICATION_HEADS,
    CLASSIFYING,
    EMBEDDING,
    LANGUAGE,
    MASKED_LM,
    OTHER_HEADS,
    TAGGING,
    head_labels,
    infer_task,
)
from entrenar_core.models.quiet import explaining, quietly, without_gguf_bar
from entrenar_core.models.weights import Weight, open_weights

if TYPE_CHECKING:
    from entrenar_core.models.placing import Placing

__all__ = [
    "head_labels",
    "infer_task",
    "load_config",
    "load_model",
    "model_class",
    "read_config",
    "seeded",
    "set_labels",
]

_AUTO = {
    CAUSAL_LM: AutoModelForCausalLM,
    MASKED_LM: AutoModelForMaskedLM,
    CLASSIFICATION: AutoModelForSequenceClassification,
    TAGGING: AutoModelForTokenClassification,
    EMBEDDING: AutoModel,
}
_AGAIN = "fetch or export the model again"
_SHOWN = 3
_NEW: WeakKeyDictionary[PreTrainedModel, frozenset[str]] = WeakKeyDictionary()


def load_model(
    artifact: ModelArtifact,
    task: str,
    *,
    dtype: str = "float32",
    label_names: Sequence[str] | None = None,
    trust_remote_code: bool = False,
    seed: int | None = None,
    pad_token_id: int | None = None,
    placing: "Placing | None" = None,
) -> PreTrainedModel:
    """The model of an artifact with the head of a task, in evaluation mode: without `placing`, on the CPU and ready to
    be saved again.

    A trained classification head is kept when it tells `label_names` apart, in this order, or as many classes without
    names; else a new one is drawn under `seed`, or from torch's generator without one. `pad_token_id` is for a config
    that names no pad token, without which a classifying decoder finds no end of a row. A GGUF is dequantised.

    Raises:
        ModelError: the weights are broken, are not those of the model, or are quantised and not a GGUF; transformers
            has no such model; or the model brings code that is not trusted.
    """
    if artifact.format is WeightFormat.ONNX:
        raise ModelError(
            f"{artifact.reference} is ONNX, which runs but has no weights that can be trained or copied",
            "take the same model in safetensors or GGUF",
        )
    config, weights = _read(artifact, task, dtype, trust_remote_code)
    if config.pad_token_id is None:
        config.pad_token_id = pad_token_id
    kind = model_class(config, task, trust_remote_code=trust_remote_code)
    keeps_head = task in LANGUAGE or (task in CLASSIFYING and _keeps_head(artifact, task, label_names))
    if task in CLASSIFYING and not keeps_head:
        weights = {name: tensor for name, tensor in weights.items() if _top(name) not in CLASSIFICATION_HEADS}
    if label_names is not None:
        set_labels(config, label_names)
    placed = {}
    if placing is not None:
        placed = placing.arguments(_empty(kind, config), getattr(torch, dtype), artifact.reference)
    with explaining("weights", artifact.reference, _AGAIN), seeded(seed):
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa" if getattr(kind, "_supports_sdpa", False) else "eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **placed,
        )
    if task == EMBEDDING:
        drop_pooler(model)
    buffers = _buffers(weights) if report["unexpected_keys"] else frozenset()
    _require_whole(artifact, model, {**report, "unexpected_keys": set(report["unexpected_keys"]) - buffers}, keeps_head)
    _keep_generation_settings(artifact, model)
    _NEW[model] = frozenset(name.rpartition(".")[0] for name in report["missing_keys"])
    if placing is not None:
        placing.finish(model, artifact.reference)
    return model.eval()


def new_modules(model: PreTrainedModel) -> frozenset[str]:
    """The modules whose weights were drawn as the model was loaded, since its files have none for them."""
    return _NEW.get(model, frozenset())


def load_config(artifact: ModelArtifact, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of an artifact as transformers' object, for a GGUF without its quantisation.

    Raises:
        ModelError: transformers does not know the model, or its config is broken.
    """
    place = artifact.weight_files[0] if artifact.format is WeightFormat.GGUF else artifact.path
    config = read_config(place, name=artifact.reference, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None):
        raise ModelError(
            f"{artifact.reference} is quantised in a way that only its own library reads",
            "take the model at 16 or 32 bits, or as GGUF",
        )
    return config


def read_config(place: Path, *, name: object = None, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration in a folder or a GGUF as transformers' object; weights need not be there.

    Raises:
        ModelError: transformers does not know the model, or its config is broken.
    """
    with explaining("configuration", name or place, _AGAIN):
        if place.is_file():
            state = place.stat()
            return copy.deepcopy(_gguf_config(place, state.st_mtime_ns, state.st_size))
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            place, local_files_only=True, trust_remote_code=trust_remote_code
        )
    return config


@lru_cache(maxsize=4)
def _gguf_config(file: Path, _changed_ns: int, _size: int) -> PreTrainedConfig:
    """Kept, since to read the header of a file with a large vocabulary takes seconds."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def model_class(config: PreTrainedConfig, task: str, *, trust_remote_code: bool = False) -> type[PreTrainedModel]:
    """The class that transformers, or the model's own code, has for a configuration and a task.

    Raises:
        ModelError: there is none.
    """
    name = getattr(config, "name_or_path", None) or config.model_type
    with explaining(f"{task} model", name, "take another model for this task"), torch.device("meta"):
        return type(_AUTO[task].from_config(config, trust_remote_code=trust_remote_code))


def _empty(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with quietly(), torch.device("meta"):
        return kind._from_config(config)


def drop_pooler(model: PreTrainedModel) -> None:
    """Takes the layer away that some encoders have for classifiers: no vector of a sentence is made from it, so it
    would stay random or grow stale, and get no gradient.
    """
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None


def set_labels(config: PreTrainedConfig, label_names: Sequence[str]) -> None:
    """Gives the configuration of a classifier its classes, in the order of their ids."""
    config.num_labels = len(label_names)
    config.id2label = dict(enumerate(label_names))
    config.label2id = {name: id_ for id_, name in enumerate(label_names)}


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """What is drawn on the CPU in the block depends on `seed` alone, and the generator goes on as if there were no
    block. Without a seed, the block draws like any other code.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _read(
    artifact: ModelArtifact, task: str, dtype: str, trust_remote_code: bool
) -> tuple[PreTrainedConfig, Mapping[str, Weight | Tensor]]:
    config = load_config(artifact, trust_remote_code=trust_remote_code)
    if artifact.format is not WeightFormat.GGUF:
        return config, open_weights(artifact)
    # transformers marks what it read from a GGUF as quantised and refuses to save it, although nothing is: so only
    # the numbers are taken from it.
    with explaining("weights", artifact.reference, _AGAIN), seeded(0), without_gguf_bar():
        source, report = _AUTO[task].from_pretrained(
            artifact.path,
            config=copy.deepcopy(config),  # else the file's header is parsed once more, which takes seconds
            gguf_file=artifact.weight_files[0].name,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            output_loading_info=True,
        )
    return config, {name: tensor for name, tensor in source.state_dict().items() if name not in report["missing_keys"]}


def _keeps_head(artifact: ModelArtifact, task: str, label_names: Sequence[str] | None) -> bool:
    trained = head_labels(artifact, task)
    if trained is None or label_names is None:
        return trained is not None
    unnamed = tuple(f"LABEL_{id_}" for id_ in range(len(label_names)))
    return trained in (tuple(label_names), unnamed)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _buffers(weights: Mapping[str, Weight | Tensor]) -> frozenset[str]:
    """What older files hold besides weights."""
    found = detect({name: tuple(weight.shape) for name, weight in weights.items()})
    return frozenset(found.buffers) if found is not None else frozenset()


def _require_whole(artifact: ModelArtifact, model: PreTrainedModel, report: dict[str, Any], keeps_head: bool) -> None:
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    other = {name for name, *_ in report["mismatched_keys"]}
    if not keeps_head:
        missing = {name for name in missing if _top(name) not in CLASSIFICATION_HEADS and "pooler" not in name}
    unexpected = {
        name for name in unexpected if _top(name) not in (*CLASSIFICATION_HEADS, *OTHER_HEADS) and "pooler" not in name
    }
    parts = [
        _listed("lack", missing - other),
        _listed("have, and the model does not,", unexpected),
        _listed("have in another shape", other),
        "; ".join(report["error_msgs"]),
    ]
    if any(parts):
        raise ModelError(
            f"the weights of {artifact.reference} are not those of a {type(model).__name__}: "
            f"they {'; they '.join(filter(None, parts))}",
            "check that config.json and the weights belong together, and fetch the model again",
        )


def _listed(verb: str, names: Collection[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{verb} {', '.join(sorted(names)[:_SHOWN])}{more}" if names else ""


def _keep_generation_settings(artifact: ModelArtifact, model: PreTrainedModel) -> None:
    if model.can_generate() and (artifact.path / "generation_config.json").is_file():
        if artifact.format is WeightFormat.GGUF:
            return
        with explaining("generation_config.json", artifact.reference, _AGAIN):
            model.generation_config = GenerationConfig.from_pretrained(artifact.path, local_files_only=True)
