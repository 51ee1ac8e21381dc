"""`--set` is read into overrides by the rules of YAML; what is not a setting and a value is refused with a hint."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_common.config import parse_overrides
from entrenar_core.config import load_config
from entrenar_core.errors import ConfigError, UsageError


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("training.epochs=3", ("training", "epochs"), 3),
        ("training.learning_rate=1e-4", ("training", "learning_rate"), 1e-4),
        ("training.mixed_precision=no", ("training", "mixed_precision"), "no"),
        ("training.baseline=true", ("training", "baseline"), True),
        ("training.max_grad_norm=null", ("training", "max_grad_norm"), None),
        ("training.trackers=[wandb, tensorboard]", ("training", "trackers"), ["wandb", "tensorboard"]),
        ("training.early_stopping={patience: 3}", ("training", "early_stopping"), {"patience": 3}),
        ("training.early_stopping.patience = 3 ", ("training", "early_stopping", "patience"), 3),
        ("task=causal-lm", ("task",), "causal-lm"),
        ("dataset.path=a=b", ("dataset", "path"), "a=b"),
        ("dataset.path='*.json'", ("dataset", "path"), "*.json"),
        ("teacher.model_id=org/name@main", ("teacher", "model_id"), "org/name@main"),
        ("dataset.text_column=''", ("dataset", "text_column"), ""),
        ("distillation.losses[10].weight=2.5", ("distillation", "losses", 10, "weight"), 2.5),
        ("distillation.losses[0].layers[1][0]=3", ("distillation", "losses", 0, "layers", 1, 0), 3),
    ],
)
def test_a_setting_and_a_value_are_an_override(text: str, path: tuple[str | int, ...], value: Any) -> None:
    ((where, read, flag),) = parse_overrides([text])
    assert (where, read, flag) == (path, value, f"--set {text.partition('=')[0].strip()}")
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("training.epochs", "`--set training.epochs` gives no value", "write the setting"),
        ("training.epochs=", "`--set training.epochs=` gives no value", "write `training.epochs=null`"),
        ("training.epochs= # 3", "gives no value", "write `training.epochs=null`"),
        ("=3", "is not the name of a setting", "`training.epochs=3`"),
        ("training..epochs=3", "`training..epochs` in", "`training.epochs=3`"),
        ("training.epochs.=3", "is not the name of a setting", "`training.epochs=3`"),
        ("distillation.losses[-1]=3", "is not the name of a setting", "`training.epochs=3`"),
        ("distillation.losses[]=3", "is not the name of a setting", "`training.epochs=3`"),
        ("[0]=3", "is not the name of a setting", "`training.epochs=3`"),
        ("training epochs=3", "is not the name of a setting", "`training.epochs=3`"),
        ("dataset.path=*.json", "not YAML", "quotes"),
        ("dataset.path=[a", "not YAML", "quotes"),
        ("dataset.path=&a [*a]", "nested more than 32 deep", "quotes"),
        ("dataset.path={a: 1, a: 2}", "`a` is given twice", "quotes"),
    ],
)
def test_anything_else_is_refused_with_what_is_accepted(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_overrides(["training.seed=1", text])
    assert message in caught.value.message
    assert caught.value.hint is not None
    assert hint in caught.value.hint


@given(text=st.text(max_size=20) | st.text(max_size=20).map("a.b={}".format))
def test_any_text_is_an_override_or_a_usage_error(text: str) -> None:
    try:
        ((where, _, flag),) = parse_overrides([text])
    except UsageError as error:
        assert error.hint  # noqa: PT017 - it need not be raised
    else:
        assert flag == f"--set {'.'.join(map(str, where))}"


def test_flags_go_before_the_file_and_the_last_one_before_the_others(tmp_path: Path) -> None:
    path = tmp_path / "distill.yaml"
    path.write_text(
        "teacher: {model_id: t}\nstudent: {model_id: s}\ndataset: {name: d}\ntraining: {epochs: 5, seed: 7}"
    )
    training = load_config(path, parse_overrides(["training.epochs=1", "training.epochs=2"])).training
    assert (training.epochs, training.seed) == (2, 7)
    with pytest.raises(ConfigError, match=r"^--set training\.epoch: `training\.epoch` is not a setting$"):
        load_config(path, parse_overrides(["training.epoch=1"]))


def test_reading_the_command_line_does_not_load_the_schema() -> None:
    code = "import sys, entrenar_common.config; assert not {'pydantic', 'yaml', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
