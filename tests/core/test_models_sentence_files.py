"""How a folder says that it is a sentence encoder, and what entrenar does not do is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from entrenar_core.artifact import inspect_folder
from entrenar_core.errors import ModelError
from entrenar_core.models.heads import infer_task
from entrenar_core.models.sentence_files import Pool, is_sentence_encoder, pooling_of, sentence_files
from tiny_models import tiny_bert

MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_bert(tmp_path / "encoder")


def write(folder: Path, pooling: dict[str, Any], *kinds: str) -> None:
    kinds = kinds or ("Transformer", "Pooling", "Normalize")
    modules = [
        {"idx": index, "name": str(index), "path": "" if kind == "Transformer" else f"{index}_{kind}",
         "type": f"sentence_transformers.models.{kind}"}
        for index, kind in enumerate(kinds)
    ]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        (MEAN, "mean"),
        ({"pooling_mode_cls_token": True}, "first"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "first"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_the_pooling_is_read(folder: Path, pooling: dict[str, Any], pool: Pool) -> None:
    assert pooling_of(inspect_folder(folder)) is None
    write(folder, pooling)
    assert pooling_of(inspect_folder(folder)) == pool


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
def test_what_is_written_is_read(folder: Path, pool: Pool) -> None:
    for name, value in sentence_files(pool, 32, 128).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    assert pooling_of(inspect_folder(folder)) == pool


@pytest.mark.parametrize(
    ("pooling", "kinds", "message"),
    [
        ({"pooling_mode_max_tokens": True}, (), "pools by pooling_mode_max_tokens, which entrenar does not do"),
        ({**MEAN, "pooling_mode_cls_token": True}, (), "pools by pooling_mode_mean_tokens, pooling_mode_cls_token"),
        ({}, (), "pools by nothing"),
        ({"pooling_mode": "weightedmean"}, (), "pools by weightedmean"),
        (MEAN, ("Transformer", "Pooling", "Dense"), "has a module Dense, which entrenar does not have"),
        (MEAN, ("Transformer",), "names no module that pools"),
    ],
)
def test_another_way_to_pool_is_refused(
    folder: Path, pooling: dict[str, Any], kinds: tuple[str, ...], message: str
) -> None:
    write(folder, pooling, *kinds)
    with pytest.raises(ModelError, match=message):
        pooling_of(inspect_folder(folder))


def test_broken_files_are_refused(folder: Path) -> None:
    write(folder, MEAN)
    (folder / "modules.json").write_text('{"0": 1}')
    with pytest.raises(ModelError, match="is no list of modules"):
        pooling_of(inspect_folder(folder))
    modules = [{"type": "x.Pooling", "path": "../1_Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="leads out of the folder"):
        pooling_of(inspect_folder(folder))


def test_a_sentence_encoder_decides_the_task_unless_it_is_to_classify(folder: Path, tmp_path: Path) -> None:
    bare, classifier = inspect_folder(folder), inspect_folder(tiny_bert(tmp_path / "classifier", num_labels=2))
    assert infer_task(bare, None) is None
    write(folder, MEAN)
    assert is_sentence_encoder(bare)
    assert infer_task(bare, None) == infer_task(bare, bare) == "embedding"
    assert infer_task(bare, None, fitted=True) is None
    assert infer_task(bare, classifier) == infer_task(classifier, bare) == "sequence-classification"
