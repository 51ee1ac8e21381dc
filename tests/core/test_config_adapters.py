"""Settings of adapters and of quantised weights: what they mean, and what is refused by name."""

from pathlib import Path
from typing import Any

import pytest

from entrenar_core.config import parse_config
from entrenar_core.config.adapters import LoraAdapter, PromptAdapter
from entrenar_core.config.finetuning import as_run
from entrenar_core.config.loading import load_finetuning, parse_finetuning
from entrenar_core.config.one_teacher import each_teacher
from entrenar_core.errors import ConfigError

STUDENT: dict[str, Any] = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
TUNED: dict[str, Any] = {"model": {"model_id": "m"}, "dataset": {"name": "d"}}


def test_an_adapter_without_a_method_is_lora_and_none_trains_everything() -> None:
    assert parse_finetuning(TUNED).adapter is None
    lora = parse_finetuning({**TUNED, "adapter": {"rank": 4}}).adapter
    assert isinstance(lora, LoraAdapter)
    assert (lora.rank, lora.alpha, lora.target_modules) == (4, 16.0, "attention")
    prompt = parse_finetuning({**TUNED, "adapter": {"method": "prompt", "virtual_tokens": 5}}).adapter
    assert isinstance(prompt, PromptAdapter)
    assert prompt.virtual_tokens == 5


def test_a_fine_tuning_is_read_as_a_run_on_labels_alone() -> None:
    config = parse_finetuning({**TUNED, "adapter": {"rank": 4}, "model": {"model_id": "m", "dropout": 0.2}})
    run = as_run(config)
    assert run.student.model_id == run.teacher.model_id == "m"
    assert run.distillation.alpha == 0.0
    assert run.student.dropout == 0.2
    assert run.student.adapter is not None
    assert run.student.adapter.rank == 4
    assert each_teacher(run)[0].teacher == run.teacher


def test_an_adapter_that_is_switched_off_is_none() -> None:
    assert parse_config({**STUDENT, "student": {"model_id": "s", "lora": {"enabled": False}}}).student.adapter is None
    assert parse_config({**STUDENT, "student": {"model_id": "s", "lora": {}}}).student.adapter is not None


@pytest.mark.parametrize(
    ("adapter", "message", "hint"),
    [
        ({"method": "loar"}, "`adapter.method` cannot be 'loar'", "did you mean 'lora'?"),
        ({"rnk": 4}, "`adapter.rnk` is not a setting", "did you mean `adapter.rank`?"),
        ({"method": "prompt", "rank": 4}, "`adapter.rank` is not a setting", "method: lora"),
        ({"virtual_tokens": 4}, "`adapter.virtual_tokens` is not a setting", "method: prompt"),
        ({"rank": 0}, "`adapter.rank` should be a whole number, at least 1, not 0", None),
        ({"target_modules": "atention"}, "`adapter.target_modules` should be a list of modules", None),
        ({"rank_pattern": {"(": 4}}, "no regular expression", None),
        ({"init": "pissa", "dora": True}, "`adapter.init: pissa` takes a part out", "remove one"),
        ({"layers": [-1]}, "`adapter.layers` should be a list of layer indices", None),
    ],
)
def test_what_an_adapter_cannot_be_is_named(adapter: dict[str, Any], message: str, hint: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_finetuning({**TUNED, "adapter": adapter})
    (problem,) = caught.value.problems
    assert message in problem.message
    assert hint is None or hint in str(problem.hint)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"type": "int4"}, "bitsandbytes has no integers of 4 bits"),
        ({"bits": 8, "type": "nf4"}, "`model.quantization.type: nf4` is not of `bits: 8`"),
        ({"group_size": 128}, "`model.quantization.group_size: 128`: models are loaded with 64 weights to a scale"),
        ({"bits": 8, "group_size": 64}, "in 8 bits each row has a scale"),
        ({"bits": 8, "double_quantization": True}, "`model.quantization.double_quantization` is of 4 bits"),
        ({"bits": 8, "compute_dtype": "bfloat16"}, "`model.quantization.compute_dtype` is of 4 bits"),
        ({"bits": 5}, "`model.quantization.bits` cannot be 5"),
    ],
)
def test_each_way_to_quantise_is_honoured_or_refused_by_name(quantization: dict[str, Any], message: str) -> None:
    values = {**TUNED, "model": {"model_id": "m", "quantization": quantization}, "adapter": {}}
    with pytest.raises(ConfigError) as caught:
        parse_finetuning(values)
    assert message in caught.value.problems[0].message


def test_what_bitsandbytes_is_told_follows_from_bits_and_type() -> None:
    def load_in(**settings: Any) -> str:
        values = {**TUNED, "model": {"model_id": "m", "quantization": settings}, "adapter": {}}
        found = parse_finetuning(values).model.quantization
        assert found is not None
        return found.load_in

    assert [load_in(), load_in(type="fp4"), load_in(bits=8), load_in(bits=8, type="int8")] == [
        "nf4", "fp4", "int8", "int8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "place", "message"),
    [
        ({"model": {"model_id": "m", "quantization": {"bits": 8}}, "adapter": {"dora": True}}, "model", "8 bits"),
        ({"model": {"model_id": "m", "quantization": {}}}, "model", "holds weights that do not train"),
        ({"model": {"model_id": "m", "dtype": "bfloat16"}}, "model", "in 32 bits"),
        ({"output": {"merge": True}}, "output", "`output.merge` is for adapters"),
        ({"adapter": {}, "output": {"formats": ["safetensors", "gguf"]}}, "output", "`output.formats` has gguf"),
        ({"training": {"baseline": True}}, "training", "there is none"),
        ({"dataset": {"name": "d", "route_column": "c"}}, "dataset", "there is none"),
        ({"adapter": {"method": "prefix"}, "training": {"gradient_checkpointing": True}}, "training", "runs layers"),
        ({"adapter": {"method": "prompt"}, "dataset": {"name": "d", "packing": True}}, "dataset", "stand before one"),
        ({"task": "embedding"}, "task", "no labels to learn from"),
    ],
)
def test_what_cannot_go_together_is_said_before_anything_is_loaded(
    changes: dict[str, Any], place: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_finetuning({**TUNED, **changes})
    assert message in caught.value.problems[0].message


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"hidden_size": 8, "num_layers": 1, "num_heads": 1, "lora": {}}, "is for a pretrained student"),
        ({"model_id": "s", "quantization": {}}, "without `student.lora` all do"),
        ({"model_id": "s", "lora": {"enabled": False}, "quantization": {}}, "without `student.lora` all do"),
        ({"model_id": "s", "lora": {"init": "olora"}, "quantization": {}}, "cannot lose their principal part"),
    ],
)
def test_a_student_s_adapter_needs_what_it_is_put_beside(student: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**STUDENT, "student": student})
    assert message in caught.value.problems[0].message


def test_mistakes_are_told_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "lora.yaml"
    file.write_text(
        "model: {model_id: m}\nadapter:\n  rank: 4\n  alfa: 3\ndataset:\n  name: d\ntraining:\n  epochs: 0\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_finetuning(file)
    assert [problem.where for problem in caught.value.problems] == [f"{file}:4:3", f"{file}:8:3"]
    assert caught.value.problems[0].hint == "did you mean `adapter.alpha`?"
