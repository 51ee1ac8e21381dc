"""What crosses the settings of adapters and of quantised weights: of a student, and of a model that is fine-tuned."""

from collections.abc import Iterator, Mapping
from typing import Any

from entrenar_core.config.broken import Broken

_GROUP_SIZE = 64
_PRINCIPAL = ("pissa", "olora")


def student_adapter_rules(values: Mapping[str, Any]) -> Iterator[Broken]:
    """Of `student.lora`, `student.quantization` and `student.dtype`."""
    student = _section(values, "student")
    lora = _section(student, "lora")
    adapts = bool(lora or student.get("lora") == {}) and lora.get("enabled", True) is not False
    yield from _lora(lora, ("student", "lora"))
    if adapts and "model_id" not in student:
        yield Broken(
            ("student", "lora"),
            "`student.lora` is for a pretrained student: adapters are saved without the weights that they belong to",
            "give `student.model_id`, or remove `student.lora`",
        )
    yield from _frozen(student, "student", "lora", adapts=adapts)
    if "quantization" in student:
        yield from _quantization(_section(student, "quantization"), ("student", "quantization"), lora)
    yield from _formats(values, adapts=adapts)
    teacher = values.get("teacher")
    if adapts and isinstance(teacher, Mapping) and "moving_average" in teacher and "quantization" in student:
        yield Broken(
            ("student", "quantization"),
            "`student.quantization`: an average of the student is of its weights, which are not held in 4 or 8 bits",
            "remove one of `student.quantization` and `teacher.moving_average`",
        )


def tuned_adapter_rules(values: Mapping[str, Any]) -> Iterator[Broken]:
    """Of `adapter`, `model.quantization` and `model.dtype`."""
    model, adapter = _section(values, "model"), _section(values, "adapter")
    adapts = isinstance(values.get("adapter"), Mapping)
    method = adapter.get("method", "lora")
    if method == "lora":
        yield from _lora(adapter, ("adapter",))
    yield from _frozen(model, "model", "adapter", adapts=adapts)
    if "quantization" in model:
        yield from _quantization(_section(model, "quantization"), ("model", "quantization"), adapter)
    yield from _formats(values, adapts=adapts)
    if method != "lora" and _section(values, "output").get("merge") is True:
        yield Broken(
            ("output", "merge"), f"`output.merge` is of low-rank matrices, and `method: {method}` has none", "remove it"
        )
    training, dataset = _section(values, "training"), _section(values, "dataset")
    if training.get("baseline") is True:
        yield Broken(
            ("training", "baseline"), "`training.baseline` trains without a teacher, and there is none", "remove it"
        )
    if "route_column" in dataset:
        yield Broken(
            ("dataset", "route_column"),
            "`dataset.route_column` is for several teachers, and there is none",
            "remove it",
        )
    if method in ("prefix", "prompt", "adaption-prompt") and dataset.get("packing") is True:
        yield Broken(
            ("dataset", "packing"),
            f"`dataset.packing` puts several examples into a row, and vectors of `method: {method}` stand before one",
            "remove one of the two",
        )
    if method == "prefix" and training.get("gradient_checkpointing") is True:
        yield Broken(
            ("training", "gradient_checkpointing"),
            "`training.gradient_checkpointing` runs layers once more, without the keys and values of `method: prefix`",
            "remove one of the two",
        )


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return {key: value for key, value in found.items() if value is not None} if isinstance(found, Mapping) else {}


def _lora(lora: Mapping[str, Any], where: tuple[str, ...]) -> Iterator[Broken]:
    name = ".".join(where)
    if lora.get("init") in _PRINCIPAL and lora.get("dora") is True:
        yield Broken(
            (*where, "init"),
            f"`{name}.init: {lora['init']}` takes a part out of the weights whose lengths `{name}.dora` trains",
            "remove one of the two",
        )
    layers = lora.get("layers")
    if isinstance(layers, list | tuple) and (not layers or any(type(one) is not int or one < 0 for one in layers)):
        yield Broken((*where, "layers"), f"`{name}.layers` should be a list of layer indices such as [0, 1]", None)


def _frozen(model: Mapping[str, Any], section: str, adapter: str, *, adapts: bool) -> Iterator[Broken]:
    where = f"{section}.lora" if adapter == "lora" else adapter
    if not adapts and "quantization" in model:
        yield Broken(
            (section, "quantization"),
            f"`{section}.quantization` holds weights that do not train, and without `{where}` all do",
            f"add `{where}: {{rank: 16}}`, or remove it",
        )
    if not adapts and model.get("dtype", "float32") != "float32":
        yield Broken(
            (section, "dtype"),
            f"`{section}.dtype` is of weights that do not train, and without `{where}` all do, in 32 bits",
            f"add `{where}: {{rank: 16}}`, or set `training.mixed_precision: bf16`",
        )


def _quantization(settings: Mapping[str, Any], where: tuple[str, ...], adapter: Mapping[str, Any]) -> Iterator[Broken]:
    name, bits, kind = ".".join(where), settings.get("bits", 4), settings.get("type")
    if kind == "int4":
        yield Broken(
            (*where, "type"), f"`{name}.type: int4`: bitsandbytes has no integers of 4 bits", "take nf4 or fp4"
        )
    elif kind is not None and (kind == "int8") != (bits == 8) and bits in (4, 8):
        yield Broken(
            (*where, "type"),
            f"`{name}.type: {kind}` is not of `bits: {bits}`",
            "8 bits are int8; 4 bits are nf4 or fp4",
        )
    group = settings.get("group_size")
    if bits == 8 and group is not None:
        yield Broken(
            (*where, "group_size"), f"`{name}.group_size` is of 4 bits; in 8 bits each row has a scale", "remove it"
        )
    elif type(group) is int and group != _GROUP_SIZE:
        yield Broken(
            (*where, "group_size"),
            f"`{name}.group_size: {group}`: models are loaded with {_GROUP_SIZE} weights to a scale",
            f"set it to {_GROUP_SIZE}, or remove it",
        )
    for key in ("double_quantization", "compute_dtype"):
        if bits == 8 and key in settings:
            yield Broken((*where, key), f"`{name}.{key}` is of 4 bits", "remove it, or set `bits: 4`")
    if bits == 8 and adapter.get("dora") is True:
        yield Broken(
            (*where, "bits"),
            f"`{name}.bits: 8`: the lengths that `dora` trains are not told of weights in 8 bits",
            "set `bits: 4`, or remove `dora`",
        )
    if adapter.get("init") in _PRINCIPAL:
        yield Broken(
            where,
            f"`{name}` and `init: {adapter['init']}`: weights in {bits} bits cannot lose their principal part exactly",
            "take another `init`, or remove the quantization",
        )


def _formats(values: Mapping[str, Any], *, adapts: bool) -> Iterator[Broken]:
    output = _section(values, "output")
    formats = output.get("formats")
    other = [one for one in formats if one != "safetensors"] if isinstance(formats, list | tuple) else []
    if adapts and other and output.get("merge") is not True:
        yield Broken(
            ("output", "formats"),
            f"`output.formats` has {other[0]}, which holds whole models, and an adapter is written",
            "add `output.merge: true`, which merges it into its base first",
        )
    if not adapts and output.get("merge") is True:
        yield Broken(("output", "merge"), "`output.merge` is for adapters, and all weights are trained", "remove it")
