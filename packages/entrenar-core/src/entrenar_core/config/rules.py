"""What crosses settings: rules that no single type can hold.

Every rule reads the plain values, before validation, so that all mistakes are reported at once; a value of the wrong
type is the schema's to report and is passed over here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from entrenar_core.architectures import families
from entrenar_core.architectures.reference_sizes import ReferenceSizes, reference_sizes
from entrenar_core.config.adapter_rules import student_adapter_rules, tuned_adapter_rules
from entrenar_core.config.broken import Broken
from entrenar_core.config.loss_rules import loss_rules
from entrenar_core.config.packing import packing_rules
from entrenar_core.config.teacher_rules import teacher_rules

SIZES = ("hidden_size", "num_layers", "num_heads")
ALL_SIZES = ("architecture", *SIZES, "num_kv_heads", "intermediate_size")
OF_THE_TEACHER = "transformer"
"""The `student.architecture` that means the teacher's family, as does none."""
WIDTHS = ("hidden_size", "num_heads", "num_kv_heads", "intermediate_size")
SOURCE = ("revision", "format", "files", "allow_pickle", "trust_remote_code")


def broken_rules(values: Mapping[str, Any]) -> Iterator[Broken]:
    """All rules that `values` break. `values` has canonical spellings, as in the YAML file."""
    student, dataset, training = (_section(values, name) for name in ("student", "dataset", "training"))
    yield from _student(student)
    yield from _dataset(dataset)
    yield from _columns(dataset)
    yield from loss_rules(_section(values, "distillation"), training)
    yield from _training(training)
    yield from _streaming(dataset, training)
    if dataset.get("packing") is True:
        yield from packing_rules(_section(values, "distillation"), values.get("task"))
    if training.get("baseline") is True and _is_zero(_section(values, "distillation").get("alpha")):
        yield Broken(
            ("training", "baseline"),
            "`training.baseline` compares with training on the labels alone, and `distillation.alpha` 0 is just that",
            "raise `distillation.alpha`, or remove `training.baseline`",
        )
    yield from _output(_section(values, "output"))
    yield from teacher_rules(values)
    yield from student_adapter_rules(values)


def broken_tuning_rules(values: Mapping[str, Any]) -> Iterator[Broken]:
    """All rules that the values of a fine-tuning break; as `broken_rules`."""
    dataset, training = _section(values, "dataset"), _section(values, "training")
    yield from _dataset(dataset)
    yield from _columns(dataset)
    yield from _training(training)
    yield from _streaming(dataset, training)
    if dataset.get("packing") is True:
        yield from packing_rules({}, values.get("task"))
    yield from _output(_section(values, "output"))
    yield from tuned_adapter_rules(values)
    if values.get("task") == "embedding":
        yield Broken(
            ("task",),
            "`task: embedding` has no labels to learn from",
            "distil it from another encoder with `entrenar-distill run`, or name another task",
        )


def _output(output: Mapping[str, Any]) -> Iterator[Broken]:
    if output.get("dir") == "":
        yield Broken(("output", "dir"), "`output.dir` is empty", "give the path of a folder")
    formats = output.get("formats")
    listed = formats if isinstance(formats, list | tuple) else ()
    for key, asked in (("quantize", "quantize" in output), ("verify", output.get("verify") is True)):
        if asked and "gguf" not in listed:
            yield Broken(
                ("output", key), f"`output.{key}` is for a GGUF, and none is written", "add gguf to `output.formats`"
            )
    twice = next((name for name in listed if listed.count(name) > 1), None)
    if twice is not None:
        yield Broken(("output", "formats"), f"`output.formats` names {twice} twice", "name each format once")


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name)
    return {key: value for key, value in section.items() if value is not None} if isinstance(section, dict) else {}


def _student(student: Mapping[str, Any]) -> Iterator[Broken]:
    ways = [way for way in ("model_id", "init_from") if way in student]
    sizes = [key for key in ALL_SIZES if key in student]
    if len(ways) + bool(sizes) > 1:
        extra = sizes[0] if sizes else ways[1]
        yield Broken(
            ("student", extra),
            f"`student.{extra}` and `student.{ways[0]}` are two ways to say what the student is",
            "give a `model_id`, or sizes such as `hidden_size`, or `init_from`",
        )
    elif not ways and not sizes:
        yield Broken(
            ("student",),
            "`student` does not say what the model is",
            "give a `model_id`, or `hidden_size`, `num_layers` and `num_heads`, or `init_from: {teacher_layers: 6}`",
        )
    elif (known := _known(student)) is not None:
        yield from _contradicted(student, known)
    elif sizes and _is_family(student) and (missing := [key for key in SIZES if key not in student]):
        yield Broken(("student",), f"a student given by sizes needs `student.{missing[0]}` too", None)
    yield from _divisible(student, "hidden_size", "num_heads")
    yield from _divisible(student, "num_heads", "num_kv_heads")
    yield from _sourceless(student)
    yield from _copied(student)


def _is_family(student: Mapping[str, Any]) -> bool:
    """Whether sizes can be asked for; what no family is called is told where it is compared with the teacher."""
    return student.get("architecture", OF_THE_TEACHER) in (OF_THE_TEACHER, None, *families())


def _known(student: Mapping[str, Any]) -> ReferenceSizes | None:
    """The known model that is named; a name that is a family's too means the family where sizes are given."""
    known = reference_sizes().get(str(student.get("architecture")))
    is_family = known is not None and known.name in families()
    return None if is_family and any(key in student for key in SIZES) else known


def _contradicted(student: Mapping[str, Any], known: ReferenceSizes) -> Iterator[Broken]:
    """A known model has the sizes of its name: others beside it would be another model."""
    for key in (*SIZES, "num_kv_heads", "intermediate_size"):
        if key in student and student[key] != getattr(known, key):
            yield Broken(
                ("student", key),
                f"`student.architecture` {known.name} has `{key}` {getattr(known, key)}, and {student[key]} is given",
                f"remove `{key}`, or give `architecture: {known.family}` and all sizes",
            )


def _copied(student: Mapping[str, Any]) -> Iterator[Broken]:
    """What `init_from` says of how, without a thing to do it to."""
    if "init_from" not in student or not isinstance(student["init_from"], dict):
        return
    init = _section(student, "init_from")
    narrower = any(key in init for key in WIDTHS)
    where = ("student", "init_from")
    if not narrower and "teacher_layers" not in init:
        yield Broken(where, "`student.init_from` does not say what becomes smaller", "give `teacher_layers` or a width")
    if "layers_from" in init and not isinstance(init.get("teacher_layers"), int):
        message = "`student.init_from.layers_from` chooses a number of layers, and none is given"
        yield Broken((*where, "layers_from"), message, "give the number as `teacher_layers`, or remove it")
    for key, needs in (("width", WIDTHS), ("importance", WIDTHS), ("embeddings", ("hidden_size",))):
        if key in init and not any(need in init for need in needs):
            message = f"`student.init_from.{key}` says how to make the student narrower, and no width is given"
            yield Broken((*where, key), message, f"give a narrower `{needs[0]}`, or remove it")
    if "importance" in init and init.get("width") in ("truncate", "interpolate") and init.get("embeddings") != "svd":
        message = f"`student.init_from.importance` changes nothing with `width: {init['width']}`"
        yield Broken((*where, "importance"), message, "remove one of the two")
    yield from _divisible(init, "num_heads", "num_kv_heads", "student.init_from")


def _sourceless(student: Mapping[str, Any]) -> Iterator[Broken]:
    for key in SOURCE:
        if key in student and "model_id" not in student:
            yield Broken(
                ("student", key),
                f"`student.{key}` is about a model that is fetched, and there is no `student.model_id`",
                "remove it",
            )


def _divisible(student: Mapping[str, Any], whole: str, part: str, section: str = "student") -> Iterator[Broken]:
    number, divisor = student.get(whole), student.get(part)
    if isinstance(number, int) and isinstance(divisor, int) and divisor > 0 and number % divisor:
        yield Broken(
            (*section.split("."), part),
            f"`{section}.{whole}` {number} is not a multiple of `{section}.{part}` {divisor}",
            f"take a multiple of {divisor}, such as {(number // divisor + 1) * divisor}",
        )


def _dataset(dataset: Mapping[str, Any]) -> Iterator[Broken]:
    source = dataset.get("source")
    if "name" not in dataset and "path" not in dataset:
        yield Broken(
            ("dataset",), "`dataset` does not say which data", "give a `name`, or the `path` of a file or folder"
        )
    elif source == "local" and "path" not in dataset:
        yield Broken(("dataset", "source"), "`dataset.source: local` needs `dataset.path`", None)
    elif source in ("builtin", "huggingface") and "name" not in dataset:
        yield Broken(("dataset", "source"), f"`dataset.source: {source}` needs `dataset.name`", None)
    elif source in ("builtin", "huggingface") and "path" in dataset:
        yield Broken(
            ("dataset", "path"),
            f"`dataset.path` is a local file, and `dataset.source` is {source}",
            "remove one of the two",
        )
    if "path" in dataset or source in ("builtin", "local"):
        for key in ("subset", "revision"):
            if key in dataset:
                yield Broken(("dataset", key), f"`dataset.{key}` is for data sets of the Hub", "remove it")
    yield from _chosen_rows(dataset)


def _chosen_rows(dataset: Mapping[str, Any]) -> Iterator[Broken]:
    if _exceeds(dataset.get("labelled_rows"), dataset.get("max_rows")):
        yield Broken(
            ("dataset", "labelled_rows"),
            f"`dataset.labelled_rows` {dataset['labelled_rows']} is more than `dataset.max_rows` {dataset['max_rows']}",
            "lower it, or remove `dataset.max_rows`",
        )
    if "eval_split" in dataset and dataset["eval_split"] == dataset.get("split", "train"):
        yield Broken(
            ("dataset", "eval_split"),
            f"`dataset.eval_split` is the split that is trained on, {dataset['eval_split']}",
            "name another one, or leave it out to hold rows out",
        )
    if "eval_split" in dataset and "eval_fraction" in dataset:
        yield Broken(
            ("dataset", "eval_fraction"),
            "`dataset.eval_split` and `dataset.eval_fraction` both choose the evaluation rows",
            "keep one",
        )


def _streaming(dataset: Mapping[str, Any], training: Mapping[str, Any]) -> Iterator[Broken]:
    if dataset.get("streaming") is not True:
        return
    for section, key, used, why in (
        ("dataset", "eval_fraction", "eval_fraction" in dataset, "a stream has no share to hold out: use `eval_rows`"),
        ("dataset", "labelled_rows", "labelled_rows" in dataset, "which rows keep labels is drawn from all rows"),
        ("dataset", "packing", dataset.get("packing") is True, "which examples share a row hangs on all lengths"),
        ("dataset", "num_proc", _exceeds(dataset.get("num_proc"), 1), "rows are tokenised as they are read"),
        ("training", "group_by_length", training.get("group_by_length") is True, "lengths are known once all is read"),
        (
            "training",
            "dataloader_workers",
            _exceeds(training.get("dataloader_workers"), 0),
            "each worker would read the whole stream",
        ),
    ):
        if used:
            yield Broken((section, key), f"`{section}.{key}` cannot go with `dataset.streaming`", why)


def _exceeds(value: object, limit: object) -> bool:
    return type(value) is int and type(limit) is int and value > limit


def _is_zero(value: object) -> bool:
    return type(value) in (int, float) and value == 0


def _columns(dataset: Mapping[str, Any]) -> Iterator[Broken]:
    if ("prompt_column" in dataset) != ("completion_column" in dataset):
        given, missing = ("prompt", "completion") if "prompt_column" in dataset else ("completion", "prompt")
        yield Broken(("dataset", f"{given}_column"), f"`dataset.{given}_column` needs `dataset.{missing}_column`", None)
    if "reasoning_column" in dataset and "completion_column" not in dataset:
        yield Broken(
            ("dataset", "reasoning_column"), "`dataset.reasoning_column` needs `dataset.completion_column`", None
        )
    for key in ("reasoning_weight", "completion_weight"):
        if key in dataset and "reasoning_column" not in dataset:
            yield Broken(("dataset", key), f"`dataset.{key}` needs `dataset.reasoning_column`", None)
    if _is_zero(dataset.get("reasoning_weight")) and _is_zero(dataset.get("completion_weight")):
        yield Broken(
            ("dataset", "completion_weight"),
            "`dataset.reasoning_weight` and `dataset.completion_weight` are both 0",
            "raise one of them",
        )
    if "prompt_column" in dataset and "messages_column" in dataset:
        yield Broken(
            ("dataset", "messages_column"),
            "`dataset.prompt_column` and `dataset.messages_column` are two kinds of rows",
            "keep `prompt_column` or `messages_column`",
        )


def _training(training: Mapping[str, Any]) -> Iterator[Broken]:
    if "early_stopping" in training and "eval_every" not in training:
        yield Broken(
            ("training", "early_stopping"),
            "`training.early_stopping` needs `training.eval_every`",
            "say how often to evaluate",
        )
    if training.get("select") == "best" and "eval_every" not in training:
        yield Broken(
            ("training", "select"), "`training.select: best` needs `training.eval_every`", "say how often to evaluate"
        )
