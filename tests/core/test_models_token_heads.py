"""Models with heads for masked tokens and for tags: what they tell of their task, and what is kept of their weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from entrenar_core.artifact import ModelArtifact, inspect_folder
from entrenar_core.config.schema import StudentConfig
from entrenar_core.errors import ConfigError, ModelError
from entrenar_core.models.heads import head_labels, headless, infer_task, predicts_masked
from entrenar_core.models.loading import load_model
from entrenar_core.models.output_layer import output_layer_of
from entrenar_core.models.student import build_student
from tiny_models import tiny_bert, tiny_llama

MASKED, TAGGED, CLASSES = "masked-lm", "token-classification", "sequence-classification"
NAMES = ("O", "B-X", "I-X")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelArtifact]:
    folder = tmp_path_factory.mktemp("models")
    labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: index for index, name in enumerate(NAMES)}}
    tiny_bert(folder / "masked", head="MaskedLM")
    tiny_bert(folder / "tagger", head="TokenClassification", num_labels=3, **labels)
    tiny_bert(folder / "classifier", num_labels=3, **labels)
    tiny_bert(folder / "bare")
    tiny_llama(folder / "llama")
    return {path.name: inspect_folder(path) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("teacher", "student", "fitted", "task"),
    [
        ("masked", None, False, MASKED),
        ("masked", "masked", False, MASKED),
        ("masked", "bare", False, MASKED),
        ("masked", "classifier", False, None),
        ("masked", "masked", True, None),
        ("masked", "classifier", True, CLASSES),
        ("masked", "tagger", True, TAGGED),
        ("bare", "masked", False, None),
        ("bare", "masked", True, None),
        ("bare", "tagger", True, TAGGED),
        ("tagger", "masked", False, TAGGED),
        ("tagger", "classifier", False, TAGGED),
        ("llama", "masked", False, "causal-lm"),
    ],
)
def test_the_task_comes_from_the_heads(
    models: dict[str, ModelArtifact], teacher: str, student: str | None, fitted: bool, task: str | None
) -> None:
    assert infer_task(models[teacher], models[student] if student else None, fitted=fitted) == task


def test_a_head_has_labels_for_its_own_task_alone(models: dict[str, ModelArtifact]) -> None:
    assert head_labels(models["tagger"], TAGGED) == NAMES == head_labels(models["classifier"], CLASSES)
    assert head_labels(models["tagger"], CLASSES) is head_labels(models["classifier"], TAGGED) is None
    assert head_labels(models["masked"], TAGGED) is None
    assert [name for name in sorted(models) if predicts_masked(models[name])] == ["masked"]
    assert "method: full" in headless(models["bare"], TAGGED)[1]
    assert "method: probe" in headless(models["bare"], CLASSES)[1]


def test_a_head_for_tags_is_kept_and_one_of_another_task_is_not(models: dict[str, ModelArtifact]) -> None:
    def head(name: str, labels: tuple[str, ...]) -> Any:
        return load_model(models[name], TAGGED, label_names=labels, seed=0).classifier.weight

    trained = {name: load_file(models[name].weight_files[0])["classifier.weight"] for name in ("tagger", "classifier")}
    assert torch.equal(head("tagger", NAMES), trained["tagger"])
    assert not torch.equal(head("tagger", NAMES[::-1]), trained["tagger"])
    assert not torch.equal(head("classifier", NAMES), trained["classifier"])
    assert load_model(models["bare"], TAGGED, label_names=NAMES, seed=0).config.id2label == dict(enumerate(NAMES))


def test_a_head_for_masked_tokens_is_never_new(models: dict[str, ModelArtifact]) -> None:
    with pytest.raises(ModelError, match=r"they lack cls\.predictions"):
        load_model(models["bare"], MASKED)


def test_the_logits_of_masked_tokens_can_be_made_in_tiles(models: dict[str, ModelArtifact]) -> None:
    model = load_model(models["masked"], MASKED)
    ids = torch.tensor([[2, 9, 8, 3], [2, 7, 3, 0]])
    layer = output_layer_of(model, ids, (ids != 0).long())
    assert layer is not None
    assert layer.module is model.get_output_embeddings()


def built(models: dict[str, ModelArtifact], teacher: str, task: str, student: StudentConfig) -> Any:
    labels = NAMES if task == TAGGED else None
    return build_student(
        student,
        teacher_artifact=models[teacher],
        teacher_model=None,
        student_artifact=None,
        task=task,
        label_names=labels,
        seed=0,
        vocab_size=256,
    )


@pytest.mark.parametrize(("teacher", "task"), [("masked", MASKED), ("tagger", TAGGED)])
def test_layers_come_with_the_teachers_head(models: dict[str, ModelArtifact], teacher: str, task: str) -> None:
    student = built(models, teacher, task, StudentConfig.model_validate({"init_from": {"teacher_layers": (1,)}}))
    weights = load_file(models[teacher].weight_files[0])
    own = student.state_dict()
    heads = [name for name in weights if not name.startswith("bert.")]
    assert heads
    assert all(torch.equal(own[name], weights[name]) for name in heads)


def test_a_student_of_sizes_has_a_new_head_of_its_task(models: dict[str, ModelArtifact]) -> None:
    sizes = StudentConfig(hidden_size=16, num_layers=1, num_heads=2)
    assert built(models, "masked", MASKED, sizes).get_output_embeddings().weight.shape[1] == 16
    tagger = built(models, "tagger", TAGGED, sizes)
    assert type(tagger).__name__ == "BertForTokenClassification"
    assert tuple(tagger.config.id2label.values()) == NAMES
    with pytest.raises(ConfigError, match="llama reads a text from the left alone, so it cannot learn masked-lm"):
        built(models, "masked", MASKED, sizes.model_copy(update={"architecture": "llama"}))


def test_folders_keep_their_task(models: dict[str, ModelArtifact], tmp_path: Path) -> None:
    for name, task in (("masked", MASKED), ("tagger", TAGGED)):
        load_model(models[name], task, label_names=NAMES if task == TAGGED else None).save_pretrained(tmp_path / name)
        assert infer_task(inspect_folder(tmp_path / name), None) == task


def test_a_narrower_student_has_a_head_of_its_width(models: dict[str, ModelArtifact]) -> None:
    sizes = {"hidden_size": 16, "num_heads": 2, "intermediate_size": 32, "width": "truncate"}
    narrower = StudentConfig.model_validate({"init_from": {"teacher_layers": 1, **sizes}})
    assert built(models, "tagger", TAGGED, narrower).classifier.weight.shape == (3, 16)
    predictions = built(models, "masked", MASKED, narrower).cls.predictions
    assert predictions.transform.dense.weight.shape == (16, 16)
    assert predictions.decoder.weight.shape[1] == 16
