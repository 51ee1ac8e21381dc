"""Every mistake is reported at once, in plain words, with its line and column; nothing else ever escapes."""

import contextlib
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.config import DistillationConfig, load_config, parse_config
from entrenar_core.config.loading import LARGEST_BYTES, Override, load_with_places
from entrenar_core.config.losses import SoftLoss
from entrenar_core.config.schedules import Schedule
from entrenar_core.config.schema import DistillationSection, TrainingConfig
from entrenar_core.config.wording import path_of, place_given
from entrenar_core.config.yaml_source import parse_document
from entrenar_core.errors import ConfigError, Problem, UsageError
from entrenar_core.losses import DIVERGENCES

SMALLEST = "teacher: {model_id: t}\nstudent: {model_id: s}\ndataset: {name: d}\n"


def read(text: str, tmp_path: Path, *overrides: Override) -> DistillationConfig:
    path = tmp_path / "distill.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def problems(text: str, tmp_path: Path, *overrides: Override) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        read(text, tmp_path, *overrides)
    return list(caught.value.problems)


def lines(text: str, tmp_path: Path, *overrides: Override) -> list[str]:
    return [str(problem).removeprefix(f"{tmp_path}/") for problem in problems(text, tmp_path, *overrides)]


TEN_MISTAKES = """\
teacher:
  model_id: org/teacher
  dtype: int8
  finetune: {method: prob}
student:
  init_from: {teacher_layers: all}
  drpout: 0.1
dataset:
  name: d
  streaming: yes
  max_rows: 1.5
training:
  learning_rate: 1e-4x
  epochs: 0
  epochs: 2
  early_stopping: 3
epocs: 3
"""


def test_ten_mistakes_are_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert lines(TEN_MISTAKES, tmp_path) == [
        "distill.yaml:3:3: `teacher.dtype` cannot be 'int8'",
        "distill.yaml:4:14: `teacher.finetune.method` cannot be 'prob'",
        "distill.yaml:6:15: `student.init_from.teacher_layers` should be a list of layer indices such as [0, 2, 4], "
        "or how many layers to copy, not 'all'",
        "distill.yaml:7:3: `student.drpout` is not a setting",
        "distill.yaml:10:3: `dataset.streaming` should be true or false, not 'yes'",
        "distill.yaml:11:3: `dataset.max_rows` should be a whole number, at least 1, not 1.5",
        "distill.yaml:13:3: `training.learning_rate` should be a number above 0, at most 1e30, not '1e-4x'",
        "distill.yaml:15:3: `epochs` is given twice",
        "distill.yaml:16:3: `training.early_stopping` is a group of settings, not 3",
        "distill.yaml:17:1: `epocs` is not a setting",
    ]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("studnt: {}", "did you mean `student`?"),
        ("epochs: 3", "did you mean `training.epochs`?"),
        ("training: {epoch: 3}", "did you mean `training.epochs`?"),
        ("training: {alpha: 1}", "did you mean `distillation.alpha`?"),
        (
            "training: {eval_every: 1, early_stopping: {patience: 1, delta: 2}}",
            "did you mean `training.early_stopping.min_delta`?",
        ),
        ("training: {eval_every: 1, early_stopping: {patience: 1, xyz: 2}}", "it has patience, min_delta"),
        ("1: x", "it has task, teacher, student, distillation, dataset, training, output"),
        ("null: x", "it has task, teacher, student, distillation, dataset, training, output"),
    ],
)
def test_an_unknown_setting_gets_a_suggestion(text: str, hint: str, tmp_path: Path) -> None:
    (problem,) = problems(SMALLEST + text, tmp_path)
    assert problem.message.endswith("is not a setting")
    assert problem.hint == hint
    assert problem.where is not None
    assert ":4:" in problem.where


@pytest.mark.parametrize(
    ("finetune", "message", "hint"),
    [
        ("probe", "`teacher.finetune` is a group of settings, not 'probe'", "fit the teacher to the labelled rows"),
        ("{}", "`teacher.finetune.method` is missing", "choose 'probe', 'head' or 'full'"),
        ("{method: bag}", "`teacher.finetune.method` cannot be 'bag'", "choose 'probe', 'head' or 'full'"),
        (
            "{method: full, epoch: 1}",
            "`teacher.finetune.epoch` is not a setting",
            "did you mean `teacher.finetune.epochs`?",
        ),
        (
            "{method: head, epochs: x}",
            "`teacher.finetune.epochs` should be a whole number, at least 1, not 'x'",
            "",
        ),
        ("{method: probe, l2: 0}", "`teacher.finetune.l2` should be a number above 0, not 0", "strength of the L2"),
        ("{method: probe, epochs: 2}", "`teacher.finetune.epochs` is not a setting", "did you mean `training.epochs`?"),
    ],
)
def test_a_wrong_way_to_fit_the_teacher_is_named_as_it_is_written(
    finetune: str, message: str, hint: str, tmp_path: Path
) -> None:
    (problem,) = problems(SMALLEST.replace("{model_id: t}", f"{{model_id: t, finetune: {finetune}}}"), tmp_path)
    assert problem.message == message
    assert problem.hint is not None
    assert problem.hint.startswith(hint)


def test_an_item_that_is_refused_is_one_mistake(tmp_path: Path) -> None:
    assert lines(f"{SMALLEST}output: {{formats: [ape]}}", tmp_path) == [
        "distill.yaml:4:20: `output.formats[0]` cannot be 'ape'"
    ]
    assert lines(f"{SMALLEST}output: {{formats: ape}}", tmp_path) == [
        "distill.yaml:4:10: `output.formats[0]` cannot be 'ape'"
    ]
    assert lines(f"{SMALLEST}output: {{formats: []}}", tmp_path) == [
        "distill.yaml:4:10: `output.formats` should be a list such as [safetensors, gguf], not []"
    ]


@pytest.mark.parametrize(
    ("setting", "value", "wanted"),
    [
        ("training.batch_size", "true", "a whole number, at least 1, not true"),
        ("training.batch_size", "2.0", "a whole number, at least 1, not 2.0"),
        ("training.batch_size", "null", "a whole number, at least 1, not null"),
        ("training.warmup_steps", "-1", "a whole number, at least 0, not -1"),
        ("training.seed", "4294967296", "a whole number, at least 0 and below 2³², not 4294967296"),
        ("training.max_grad_norm", ".inf", "a number above 0, not inf"),
        ("training.weight_decay", "-0.1", "a number from 0 to 1,000,000, not -0.1"),
        ("training.batch_size", "2147483648", "below 2,147,483,648, not 2147483648"),
        ("training.trackers", "wandb", "a list such as [tensorboard], not 'wandb'"),
        ("dataset.eval_fraction", "1", "a number between 0 and 1, not 1"),
        ("dataset.eval_fraction", ".nan", "a number between 0 and 1, not nan"),
        ("distillation.alpha", "1.01", "a number from 0 to 1, or a schedule, not 1.01"),
        ("distillation.alpha", ".nan", "a number from 0 to 1, or a schedule, not nan"),
        ("student.dropout", "1.0", "a number, at least 0 and below 1, not 1.0"),
        ("dataset.text_column", "''", "a text that is not empty, not ''"),
        ("dataset.text_column", "3", "a text that is not empty, not 3"),
        ("teacher.files", "[]", "a list of at least one text, such as [a, b], not []"),
        ("teacher.files", "model.gguf", "a list of at least one text, such as [a, b], not 'model.gguf'"),
        ("output.dir", "3", "the path of a folder, not 3"),
    ],
)
def test_a_wrong_value_is_told_what_is_accepted(setting: str, value: str, wanted: str, tmp_path: Path) -> None:
    section, key = setting.split(".")
    base = {"teacher": "model_id: t", "student": "model_id: s", "dataset": "name: d"}
    base[section] = f"{base.get(section, '')}\n  {key}: {value}"
    text = "\n".join(f"{name}:\n  {settings}" for name, settings in base.items())
    (problem,) = problems(text, tmp_path)
    assert problem.message == f"`{setting}` should be {wanted}"
    assert problem.hint
    assert problem.hint[0].islower() or problem.hint.startswith("A")


def test_words_and_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    config = read(
        SMALLEST.replace("name: d", "name: no, text_column: on, label_column: 2001-01-01")
        + "training: {mixed_precision: no, learning_rate: 1e-4, warmup_steps: 010, weight_decay: 1}",
        tmp_path,
    )
    assert config.training.mixed_precision == "no"
    assert config.training.learning_rate == 0.0001
    assert config.training.warmup_steps == 10
    assert (config.dataset.name, config.dataset.text_column, config.dataset.label_column) == ("no", "on", "2001-01-01")


def test_a_section_without_settings_has_its_defaults(tmp_path: Path) -> None:
    config = read(f"{SMALLEST}task: null\ntraining:\noutput: # nothing\n", tmp_path)
    assert config.task is None
    assert config.training == TrainingConfig()


def test_what_is_missing_is_said_with_what_it_is_for(tmp_path: Path) -> None:
    assert [(p.message, p.hint) for p in problems("teacher:\nstudent: {model_id: s}\n", tmp_path)] == [
        ("`dataset` is missing", "the rows to learn from and the rows to be judged on"),
        (
            "`teacher.model_id` is missing",
            "`org/name[@revision]`, a folder, a `.gguf` or `.onnx` file, or `pkg://package/path`",
        ),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "distill.yaml: the file is empty"),
        (b"# only a comment\n", "distill.yaml: the file is empty"),
        (b"- teacher\n- student\n", "distill.yaml:1:1: a configuration is a mapping of `section:` to settings"),
        (b"teacher\n", "distill.yaml:1:1: a configuration is a mapping of `section:` to settings"),
        (b"teacher: caf\xe9\n", "distill.yaml: is not text in UTF-8"),
        (b"#" * (LARGEST_BYTES + 1), "distill.yaml: is too large to be a configuration"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_mistake(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "distill.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert [str(problem).removeprefix(f"{tmp_path}/") for problem in caught.value.problems] == [message]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml: no such file"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match="Is a directory"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("name", "there", "hint"),
    [
        ("c.yml", "c.yaml", "did you mean {folder}/c.yaml?"),
        ("distil.yaml", "distill.yml", "did you mean {folder}/distill.yml?"),
        ("c.yaml", "c.txt", "give the path of a YAML configuration"),
        ("other.yaml", "c.yaml", "give the path of a YAML configuration"),
        ("none/c.yaml", "c.yaml", "give the path of a YAML configuration"),
    ],
)
def test_a_file_of_nearly_that_name_is_suggested(name: str, there: str, hint: str, tmp_path: Path) -> None:
    (tmp_path / there).touch()
    with pytest.raises(UsageError) as absent:
        load_config(tmp_path / name)
    assert absent.value.hint == hint.format(folder=tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "distill.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())
    assert load_config(path).teacher.model_id == "t"


def test_flags_replace_what_the_file_says(tmp_path: Path) -> None:
    config = read(
        f"{SMALLEST}training: {{epochs: 5, seed: 7}}\noutput:\n",
        tmp_path,
        (("training", "epochs"), 1, "--set training.epochs"),
        (("training", "early_stopping", "patience"), 2, "--set training.early_stopping.patience"),
        (("training", "eval_every"), 10, "--set training.eval_every"),
        (("output", "dir"), "elsewhere", "--output"),
    )
    assert (config.training.epochs, config.training.seed) == (1, 7)
    assert config.training.early_stopping is not None
    assert config.output.dir == Path("elsewhere")


def test_a_flag_replaces_a_mistake_of_the_file_and_a_wrong_flag_is_named(tmp_path: Path) -> None:
    text = f"{SMALLEST}training: {{epochs: none, seed: -1}}"
    assert lines(text, tmp_path, (("training", "epochs"), 0, "--set training.epochs")) == [
        "distill.yaml:4:26: `training.seed` should be a whole number, at least 0 and below 2³², not -1",
        "--set training.epochs: `training.epochs` should be a whole number, at least 1, not 0",
    ]
    whole = (("training",), {"epochs": 0}, "--set training")
    assert lines(text, tmp_path, whole) == [
        "--set training: `training.epochs` should be a whole number, at least 1, not 0"
    ]


def flags(*settings: tuple[str, Any]) -> list[Override]:
    return [(tuple(name.split(".")), value, f"--set {name}") for name, value in settings]


@pytest.mark.parametrize(
    ("text", "settings", "line"),
    [
        ("", [("trainng.epochs", 3)], "--set trainng.epochs: `trainng` is not a setting"),
        (
            "",
            [("student.lora.rank", 0)],
            "--set student.lora.rank: `student.lora.rank` should be a whole number, at least 1, not 0",
        ),
        (
            "training: {epochs: 2}",
            [("training.early_stopping.patience", 2)],
            "--set training.early_stopping.patience: `training.early_stopping` needs `training.eval_every`",
        ),
        (
            "training: {eval_every: 2}",
            [("training.early_stopping.min_delta", 2)],
            "--set training.early_stopping.min_delta: `training.early_stopping.patience` is missing",
        ),
        (
            "training: {select: best, eval_every: 2}",
            [("training.eval_every", None)],
            "--set training.eval_every: `training.select: best` needs `training.eval_every`",
        ),
        (
            "",
            [("dataset.prompt_column", "query")],
            "--set dataset.prompt_column: `dataset.prompt_column` needs `dataset.completion_column`",
        ),
    ],
)
def test_a_flag_that_breaks_a_rule_is_named(
    text: str, settings: list[tuple[str, Any]], line: str, tmp_path: Path
) -> None:
    assert lines(SMALLEST + text, tmp_path, *flags(*settings)) == [line]


LOSSES = "distillation:\n  losses: [{name: forward_kl}, {name: hidden_mse, layers: [[0, 1]]}]\n"


def test_a_flag_reaches_an_entry_of_a_list(tmp_path: Path) -> None:
    section = read(
        SMALLEST + LOSSES,
        tmp_path,
        (("distillation", "losses", 0, "weight"), 0.25, "--set a"),
        (("distillation", "losses", 0, "temperature", "schedule"), "linear", "--set b"),
        (("distillation", "losses", 0, "temperature", "start"), 4.0, "--set c"),
        (("distillation", "losses", 0, "temperature", "end"), 1.0, "--set d"),
        (("distillation", "losses", 1), {"name": "jsd", "beta": 0.25}, "--set e"),
    ).distillation
    assert section.losses is not None
    first, second = section.losses
    assert (first.name, first.weight, second.name) == ("forward_kl", 0.25, "jsd")
    assert isinstance(first, SoftLoss)
    assert isinstance(first.temperature, Schedule)
    assert (first.temperature.start, first.temperature.end) == (4.0, 1.0)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("distillation.losses[2].weight", "`distillation.losses` is a list with 2 entries, counted from 0"),
        ("distillation.losses[2]", "`distillation.losses` is a list with 2 entries, counted from 0"),
        ("distillation.losses.weight", "`distillation.losses` is a list with 2 entries, counted from 0"),
        (
            "distillation.losses[1].layers[1]",
            "`distillation.losses[1].layers` is a list with 1 entries, counted from 0",
        ),
        ("distillation.losses[0].name.x", "`distillation.losses[0].name` is not a group of settings"),
        ("distillation[0]", "`distillation` is not a list in the configuration"),
        ("training.trackers[0]", "`training.trackers` is not a list in the configuration"),
        ("distillation.losses[1].wait", "`distillation.losses[1].wait` is not a setting"),
    ],
)
def test_a_flag_to_an_entry_that_is_not_there_is_told(path: str, line: str, tmp_path: Path) -> None:
    found = lines(SMALLEST + LOSSES, tmp_path, (path_of(path), 3, f"--set {path}"))
    assert found == [f"--set {path}: {line}"]


def test_the_entries_that_there_are_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(SMALLEST + LOSSES, tmp_path, (("distillation", "losses", 5), {}, "--set x"))
    (problem,) = caught.value.problems
    assert problem.hint == "name an entry of it: `distillation.losses[0]` to `distillation.losses[1]`"


def test_a_flag_that_contradicts_the_file_is_named(tmp_path: Path) -> None:
    text = SMALLEST.replace("name: d", "name: d, messages_column: m")
    pair = flags(("dataset.prompt_column", "q"), ("dataset.completion_column", "a"))
    assert lines(text, tmp_path, *pair) == [
        "--set dataset.prompt_column: `dataset.prompt_column` and `dataset.messages_column` are two kinds of rows"
    ]
    assert lines(SMALLEST + "training:\n  select: best\n  epochs: 1", tmp_path, *flags(("training.seed", 1))) == [
        "distill.yaml:5:3: `training.select: best` needs `training.eval_every`"
    ]


def test_the_places_of_what_was_given_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "distill.yaml"
    path.write_text(f"{SMALLEST}training:\n  epochs: 2\n")
    given = flags(("training.seed", 1), ("output", {"keep": 3}), ("distillation.alpha", 1))
    places = load_with_places(path, given).places
    assert place_given(("training", "epochs"), places) == f"{path}:5:3"
    assert place_given(("training", "seed"), places) == "--set training.seed"
    assert place_given(("output", "keep"), places) == "--set output"
    assert place_given(("training", "batch_size"), places) is None
    assert place_given(("distillation", "temperature"), places) is None
    assert place_given(("task",), places) is None


def test_a_flag_inside_something_that_is_no_group_is_refused(tmp_path: Path) -> None:
    flag = (("training", "epochs", "first"), 1, "--set training.epochs.first")
    assert lines(f"{SMALLEST}training: {{epochs: 2}}", tmp_path, flag) == [
        "--set training.epochs.first: `training.epochs` is not a group of settings"
    ]


def test_a_flag_replaces_an_older_spelling_and_may_be_one(tmp_path: Path) -> None:
    text = SMALLEST.replace("{model_id: t}", "{repo_id: t}") + "output: {path: there}"
    config = read(text, tmp_path, (("teacher", "model_id"), "x", "--teacher"), (("output", "dir"), "y", "--output"))
    assert (config.teacher.model_id, config.output.dir) == ("x", Path("y"))
    assert read(SMALLEST, tmp_path, (("teacher", "repo_id"), "x", "--set teacher.repo_id")).teacher.model_id == "x"


def test_flags_alone_are_a_configuration() -> None:
    names = (("teacher", "model_id"), ("student", "model_id"), ("dataset", "name"))
    assert load_config(None, [(where, "x", "--x") for where in names]).dataset.name == "x"
    with pytest.raises(ConfigError, match="`dataset` is missing"):
        load_config(None, [(where, "x", "--x") for where in names[:2]])


def test_a_change_to_one_setting_does_not_reach_another_that_shares_an_alias(tmp_path: Path) -> None:
    text = "teacher: &model {model_id: t}\nstudent: *model\ndataset: {name: d}\n"
    config = read(text, tmp_path, (("student", "model_id"), "s", "--student"))
    assert (config.teacher.model_id, config.student.model_id) == ("t", "s")


def test_plain_values_give_the_same_and_are_left_as_they_were() -> None:
    values: dict[str, Any] = {"teacher": {"repo_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    assert parse_config(values).teacher.model_id == "t"
    assert values["teacher"] == {"repo_id": "t"}


def test_the_trackers_are_those_of_accelerate() -> None:
    from typing import get_args

    from accelerate.utils import LoggerType

    from entrenar_core.config.schema import Tracker

    assert set(get_args(Tracker)) == {str(kind.value) for kind in LoggerType} - {"all"}


def test_the_choices_of_a_divergence_are_the_table_of_divergences() -> None:
    from typing import get_args

    assert set(get_args(DistillationSection.model_fields["divergence"].annotation)) == set(DIVERGENCES)


NAMES = st.sampled_from(
    [*DistillationConfig.model_fields, "model_id", "finetune", "method", "init_from", "teacher_layers", "epochs"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["probe", "full"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(values=st.dictionaries(NAMES, VALUES, max_size=6))
def test_any_mapping_is_a_configuration_or_a_mistake(values: dict[str, Any]) -> None:
    try:
        parse_config(values)
    except ConfigError as error:
        assert all(problem.message for problem in error.problems)  # noqa: PT017 - it need not be raised


@st.composite
def nearly_right(draw: st.DrawFn) -> dict[str, Any]:
    """A right configuration with some settings replaced by anything."""
    values: dict[str, Any] = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    for section, field in DistillationConfig.model_fields.items():
        kind = field.annotation
        for name in draw(st.lists(st.sampled_from(sorted(getattr(kind, "model_fields", {"x": 0}))), max_size=3)):
            values.setdefault(section, {})[name] = draw(VALUES)
    return values


@given(values=nearly_right())
def test_any_value_of_any_setting_is_accepted_or_a_mistake_that_names_it(values: dict[str, Any]) -> None:
    try:
        parse_config(values)
    except ConfigError as error:
        assert all("`" in problem.message for problem in error.problems)  # noqa: PT017 - it need not be raised


TOKENS = ["teacher", ":", " ", "\n", "  ", "- ", "[", "]", "{", "}", ",", "&a", "*a", "<<", "!!int", "!!set", "!!bool"]
YAML_LIKE = st.lists(
    st.sampled_from([*TOKENS, "? ", "|", ">", "'", '"', "#", "---", "...", "%", "\t", "1e-4", "~", "=", "!x", "@"])
    | st.text(string.printable, max_size=3)
    | st.characters(),
    max_size=25,
).map("".join)


@given(text=YAML_LIKE)
def test_any_text_is_a_configuration_or_a_mistake_with_its_file(text: str) -> None:
    document = parse_document(text, "f.yaml")
    with contextlib.suppress(ConfigError):
        parse_config(document.values)
    for problem in document.problems:
        assert problem.where is not None
        assert problem.where.startswith("f.yaml")
