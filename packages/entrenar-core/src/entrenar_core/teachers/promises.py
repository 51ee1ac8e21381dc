"""What the teacher of a configuration will say, known before anything is loaded; without torch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from entrenar_core.config.one_teacher import OneTeacher
from entrenar_core.config.schema import DistillationConfig
from entrenar_core.config.teachers import EndpointTeacher, EnsembleTeacher, MovingAverageTeacher
from entrenar_core.errors import DataError
from entrenar_core.formats import WeightFormat
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.models.wants import Wants
from entrenar_core.teachers.cache.manifest import read_manifest
from entrenar_core.teachers.signals import Distribution, Drawn, Likeliest, Signals, Vectors, Whole

_LIVE = "let the teacher read: remove `teacher.cache`"
_HIDDEN = f"keep hidden states (`cache build --kind hidden`), or {_LIVE}"


def promised(
    given: DistillationConfig,
    config: OneTeacher,
    task: str | None,
    format: WeightFormat | None,  # noqa: A002 - as the setting is called
) -> Signals | None:
    """What one teacher will say: in place of it, its cache. None where a cache cannot be read, which is told where it
    is opened.

    Args:
        given: the configuration as it was given.
        config: the same with this teacher.
        task: where it is known.
        format: of the teacher's weights, where it is known.
    """
    use = config.teacher.cache
    if use is not None and use.dir is not None:
        try:
            manifest = read_manifest(use.dir)
        except DataError:
            return None
        return of_cache(manifest.kind, manifest.wants)
    if isinstance(given.teacher, EndpointTeacher):
        live = of_endpoint(given.teacher.top_logprobs)
    elif format is WeightFormat.ONNX:
        live = of_graph(embeds=task == EMBEDDING)
    elif isinstance(given.teacher, MovingAverageTeacher):
        live = replace(of_model("float32"), who="the student's average")
    else:
        live = of_model(config.teacher.dtype, embeds=task == EMBEDDING)
    return (
        live if use is None else replace(live, who="a cache in memory", at_hand=False, examples="kept", instead=_LIVE)
    )


def taught(
    given: DistillationConfig,
    config: OneTeacher,
    task: str | None,
    format: WeightFormat | None,  # noqa: A002 - as the setting is called
) -> Signals | None:
    """What the losses are given: of several teachers, what they say together; else as `promised`."""
    return of_several() if isinstance(given.teacher, EnsembleTeacher) else promised(given, config, task, format)


def of_several() -> Signals:
    """What several teachers say together."""
    return Signals("an ensemble", Whole(), Wants(), False, "any", "float32", "keep one teacher")


def of_model(dtype: str, *, embeds: bool = False) -> Signals:
    """A model that is loaded here."""
    return Signals("the teacher", Vectors() if embeds else Whole(), None, True, "any", dtype, "take another teacher")


def of_graph(*, embeds: bool = False) -> Signals:
    """A graph that onnxruntime runs."""
    distribution: Distribution = Vectors() if embeds else Whole()
    instead = "take the teacher in safetensors or GGUF"
    return Signals("an ONNX teacher", distribution, Wants(), False, "any", "float32", instead)


def of_texts(*, embeds: bool = False) -> Signals:
    """A teacher that has read the texts of a run by itself."""
    distribution: Distribution = Vectors() if embeds else Whole()
    instead = "let it read the student's tokens"
    return Signals("a teacher that reads texts", distribution, Wants(), False, "texts", "float32", instead)


def of_endpoint(k: int) -> Signals:
    """A server, which tells what the other tokens have together at temperature 1, and from that nothing follows for
    others.
    """
    known = Likeliest(k, 1.0, 1.0, "raise `teacher.top_logprobs`")
    return Signals("an endpoint", known, Wants(), False, "any", "float32", "take a teacher that is loaded here")


def of_cache(kind: Mapping[str, Any], wants: Wants) -> Signals:
    """What was kept.

    Args:
        kind: as the manifest of a cache has it.
        wants: the layers that are kept.
    """
    known: Distribution = Whole()
    dtype, instead = kind.get("precision", "float32"), f"build the cache again with this configuration, or {_LIVE}"
    match kind["name"]:
        case "topk":
            more = "build the cache with a greater `--top-k`"
            known = Likeliest(kind["k"], kind["lowest"], kind["highest"], more)
            dtype, instead = "float16", _HIDDEN
        case "sampled":
            known, instead = Drawn(kind["temperature"]), _HIDDEN
        case "vectors":
            known = Vectors()
    return Signals(f"the {kind['name']} cache", known, wants, False, "kept", dtype, instead)
