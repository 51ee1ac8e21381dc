"""What crosses settings is checked too, and reported beside the mistakes within settings."""

from typing import Any

import pytest

from entrenar_core.config import parse_config
from entrenar_core.errors import ConfigError
from entrenar_core.losses.table import LOSSES

SIZES = {"hidden_size": 64, "num_layers": 2, "num_heads": 4}


def values(**changed: dict[str, Any] | str | None) -> dict[str, Any]:
    base: dict[str, Any] = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    return base | changed


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"student": {}}, "`student` does not say what the model is"),
    ({"student": {"model_id": "s", **SIZES}}, "`student.hidden_size` and `student.model_id` are two ways"),
    ({"student": {"model_id": "s", "num_kv_heads": 2}}, "`student.num_kv_heads` and `student.model_id` are two ways"),
    (
        {"student": {"model_id": "s", "init_from": {"teacher_layers": 2}}},
        "`student.init_from` and `student.model_id` are two ways",
    ),
    (
        {"student": {"init_from": {"teacher_layers": 2}, **SIZES}},
        "`student.hidden_size` and `student.init_from` are two ways",
    ),
    ({"student": {"init_from": {}}}, "`student.init_from` does not say what becomes smaller"),
    (
        {"student": {"init_from": {"layers_from": "last", "hidden_size": 8}}},
        "`student.init_from.layers_from` chooses a number",
    ),
    (
        {"student": {"init_from": {"layers_from": "last", "teacher_layers": [0]}}},
        "`student.init_from.layers_from` chooses a number of",
    ),
    ({"student": {"init_from": {"teacher_layers": 2, "width": "truncate"}}}, "`student.init_from.width` says how"),
    (
        {"student": {"init_from": {"teacher_layers": 2, "importance": "magnitude"}}},
        "`student.init_from.importance` says how",
    ),
    ({"student": {"init_from": {"num_heads": 2, "embeddings": "svd"}}}, "`student.init_from.embeddings` says how"),
    (
        {"student": {"init_from": {"num_heads": 2, "width": "truncate", "importance": "magnitude"}}},
        "`student.init_from.importance` changes nothing with `width: truncate`",
    ),
    (
        {"student": {"init_from": {"num_heads": 4, "num_kv_heads": 3}}},
        "`student.init_from.num_heads` 4 is not a multiple of `student.init_from.num_kv_heads` 3",
    ),
    ({"student": {"hidden_size": 64, "num_heads": 4}}, "a student given by sizes needs `student.num_layers` too"),
    ({"student": {"architecture": "llama"}}, "a student given by sizes needs `student.hidden_size` too"),
    ({"student": {**SIZES, "num_heads": 5}}, "`student.hidden_size` 64 is not a multiple of `student.num_heads` 5"),
    ({"student": {**SIZES, "num_kv_heads": 3}}, "`student.num_heads` 4 is not a multiple of `student.num_kv_heads` 3"),
    *(
        ({"student": {**SIZES, key: value}}, f"`student.{key}` is about a model that is fetched")
        for key, value in {
            "revision": "main",
            "format": "gguf",
            "files": ["a"],
            "allow_pickle": True,
            "trust_remote_code": True,
        }.items()
    ),
    ({"dataset": {}}, "`dataset` does not say which data"),
    ({"dataset": {"source": "local", "name": "d"}}, "`dataset.source: local` needs `dataset.path`"),
    ({"dataset": {"source": "builtin", "path": "p"}}, "`dataset.source: builtin` needs `dataset.name`"),
    ({"dataset": {"source": "huggingface", "path": "p"}}, "`dataset.source: huggingface` needs `dataset.name`"),
    (
        {"dataset": {"source": "huggingface", "name": "d", "path": "p"}},
        "`dataset.path` is a local file, and `dataset.source` is huggingface",
    ),
    ({"dataset": {"path": "p", "subset": "x"}}, "`dataset.subset` is for data sets of the Hub"),
    (
        {"dataset": {"source": "builtin", "name": "d", "revision": "x"}},
        "`dataset.revision` is for data sets of the Hub",
    ),
    (
        {"dataset": {"name": "d", "eval_split": "test", "eval_fraction": 0.1}},
        "`dataset.eval_split` and `dataset.eval_fraction` both choose",
    ),
    *(
        (
            {"dataset": {"name": "d", "streaming": True, key: value}},
            f"`dataset.{key}` cannot go with `dataset.streaming`",
        )
        for key, value in {"eval_fraction": 0.1, "labelled_rows": 5, "num_proc": 2, "packing": True}.items()
    ),
    *(
        (
            {"dataset": {"name": "d", "packing": True}, "task": task},
            f"`dataset.packing` puts several examples into a row, and models of the task {task} read a row as one",
        )
        for task in ("sequence-classification", "embedding")
    ),
    *(
        (
            {"dataset": {"name": "d", "packing": True}, "distillation": {"losses": [{"name": name}]}},
            f"`distillation.losses[0]`: {name} compares the rows of a group, and packed rows hold several examples",
        )
        for name, row in LOSSES.items()
        if row.scope == "group"
    ),
    *(
        (
            {"dataset": {"name": "d", "packing": True}, "distillation": {section: {"loss": loss}}},
            f"`distillation.{section}.loss`: {loss} compares the rows of a group",
        )
        for section, loss in (("progressive", "cka"), ("relations", "rkd_angle"))
    ),
    *(
        (
            {"dataset": {"name": "d", "streaming": True}, "training": {key: value}},
            f"`training.{key}` cannot go with `dataset.streaming`",
        )
        for key, value in {"group_by_length": True, "dataloader_workers": 1}.items()
    ),
    (
        {"dataset": {"path": "p", "labelled_rows": 11, "max_rows": 10}},
        "`dataset.labelled_rows` 11 is more than `dataset.max_rows` 10",
    ),
    ({"distillation": {"divergence": "bild", "top_k": 1}}, "`distillation.top_k` 1 leaves BiLD nothing to compare"),
    ({"distillation": {"divergence": "bild", "top_k_tail": False}}, "`distillation.top_k_tail` is not for BiLD"),
    ({"distillation": {"top_k_tail": False}}, "`distillation.top_k_tail` needs `distillation.top_k`"),
    ({"distillation": {"top_k": 1, "top_k_tail": False}}, "`distillation.top_k` 1 without `distillation.top_k_tail`"),
    ({"dataset": {"name": "d", "prompt_column": "p"}}, "`dataset.prompt_column` needs `dataset.completion_column`"),
    (
        {"dataset": {"name": "d", "reasoning_column": "r"}},
        "`dataset.reasoning_column` needs `dataset.completion_column`",
    ),
    (
        {"dataset": {"name": "d", "reasoning_weight": 0.3}},
        "`dataset.reasoning_weight` needs `dataset.reasoning_column`",
    ),
    (
        {
            "dataset": {
                "name": "d",
                "prompt_column": "p",
                "completion_column": "c",
                "reasoning_column": "r",
                "reasoning_weight": 0,
                "completion_weight": 0.0,
            }
        },
        "`dataset.reasoning_weight` and `dataset.completion_weight` are both 0",
    ),
    ({"dataset": {"name": "d", "completion_column": "c"}}, "`dataset.completion_column` needs `dataset.prompt_column`"),
    (
        {"dataset": {"name": "d", "prompt_column": "p", "completion_column": "c", "messages_column": "m"}},
        "`dataset.prompt_column` and `dataset.messages_column` are two kinds of rows",
    ),
    ({"training": {"early_stopping": {"patience": 1}}}, "`training.early_stopping` needs `training.eval_every`"),
    ({"training": {"select": "best"}}, "`training.select: best` needs `training.eval_every`"),
    (
        {"training": {"baseline": True}, "distillation": {"alpha": 0}},
        "`training.baseline` compares with training on the labels alone",
    ),
    ({"output": {"dir": ""}}, "`output.dir` is empty"),
    (
        {"teacher": {"model_id": "t", "finetune": {"method": "probe"}}, "task": "causal-lm"},
        "`teacher.finetune` fits a classifier, and `task` is causal-lm",
    ),
]


@pytest.mark.parametrize(("changed", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_broken_rule_is_the_one_mistake(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(values(**changed))
    messages = [problem.message for problem in caught.value.problems]
    assert len(messages) == 1, messages
    assert messages[0].startswith(message)


@pytest.mark.parametrize(
    "changed",
    [
        {"student": SIZES},
        {"student": {**SIZES, "num_kv_heads": 2, "intermediate_size": 100, "architecture": "llama"}},
        {"student": {"init_from": {"teacher_layers": 6}, "dropout": 0.0}},
        {"student": {"init_from": {"teacher_layers": [0, 5]}}},
        {"student": {"init_from": {"hidden_size": 8, "embeddings": "svd", "width": "truncate"}}},
        {"student": {"init_from": {"teacher_layers": 2, "layers_from": "first", "intermediate_size": 8}}},
        {"student": {"model_id": "s", "revision": "main", "num_heads": None}},
        {"dataset": {"path": "p"}},
        {"dataset": {"name": "d", "path": "p", "source": "local"}},
        {"dataset": {"name": "d", "subset": "x", "revision": "main"}},
        {"dataset": {"name": "d", "packing": True}, "task": "masked-lm"},
        {"dataset": {"name": "d", "packing": False}, "task": "embedding"},
        *(
            {"dataset": {"name": "d", "packing": True}, "distillation": {"losses": [{"name": name}]}}
            for name in ("forward_kl", "patient", "attention_maps", "attention_kl", "minilm", "hidden_cosine")
        ),
        {
            "dataset": {"name": "d", "packing": True},
            "distillation": {"relations": {"loss": "rkd_angle", "enabled": False}, "progressive": {}},
        },
        {"dataset": {"name": "d", "streaming": True, "eval_rows": 5, "num_proc": 1}},
        {
            "dataset": {"name": "d", "streaming": True},
            "training": {"dataloader_workers": 0, "group_by_length": False},
        },
        {"dataset": {"name": "d", "num_proc": 2}, "training": {"dataloader_workers": 2, "group_by_length": True}},
        {"dataset": {"name": "d", "prompt_column": "p", "completion_column": "c"}},
        {"training": {"select": "best", "early_stopping": {"patience": 1}, "eval_every": 5}},
        {"training": {"warmup_steps": 1000, "max_steps": 2}},  # a short trial of a long recipe
        {"training": {"baseline": True}},
        {"training": {"baseline": False}, "distillation": {"alpha": 0}},
        {"teacher": {"model_id": "t", "finetune": {"method": "full"}}, "task": "sequence-classification"},
    ],
)
def test_what_stays_within_the_rules_is_accepted(changed: dict[str, Any]) -> None:
    parse_config(values(**changed))


def test_a_value_of_the_wrong_type_breaks_no_rule() -> None:
    wrong = {"hidden_size": "64", "num_layers": 2, "num_heads": 0}
    with pytest.raises(ConfigError) as caught:
        parse_config(values(student=wrong, training={"warmup_steps": "x"}))
    assert [problem.message for problem in caught.value.problems] == [
        "`student.hidden_size` should be a whole number, at least 1, not '64'",
        "`student.num_heads` should be a whole number, at least 1, not 0",
        "`training.warmup_steps` should be a whole number, at least 0, not 'x'",
    ]
