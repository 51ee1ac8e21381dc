"""`diagnose` of sentence encoders: what it says is what their vectors give, worked out once more by hand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from entrenar_core import distill, parse_config
from entrenar_core.diagnosis import Encoder, SentenceDiagnosis
from entrenar_core.diagnosis.looking import look
from entrenar_core.diagnosis.sentences import collapse
from entrenar_core.errors import DataError
from entrenar_core.losses.layer_mapping import pairs_by_cka
from tiny_jobs import merged, write_config, write_rows
from tiny_models import CORPUS, tiny_bert
from tiny_vocabularies import renumbered, shuffled

Program = Callable[[Sequence[str] | None], int]
Capture = pytest.CaptureFixture[str]
LAYERS = {"losses": [{"name": "embedding_cosine"}, {"name": "hidden_cosine", "layers": "uniform"}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, also with other ids, one of another vocabulary, one to whom all texts are alike, and two students."""
    folder = tmp_path_factory.mktemp("encoders")
    size = len(AutoTokenizer.from_pretrained(tiny_bert(folder / "teacher", seed=1, initializer_range=0.3)))
    renumbered(folder / "teacher", folder / "permuted", shuffled(size), rows=size + 5)
    tiny_bert(folder / "other", seed=3, initializer_range=0.3, vocab_size=160, tokenizer_texts=CORPUS[1:3])
    tiny_bert(folder / "student", seed=2, hidden_size=16, num_hidden_layers=1, initializer_range=0.2)
    tiny_bert(folder / "wide", seed=4, num_hidden_layers=1, initializer_range=0.2)
    file = tiny_bert(folder / "alike", seed=5) / "model.safetensors"
    weights = load_file(file)
    for name, tensor in weights.items():  # its last norm gives the same whatever it reads
        if name.endswith("layer.1.output.LayerNorm.weight"):
            weights[name] = torch.zeros_like(tensor)
        if name.endswith("layer.1.output.LayerNorm.bias"):
            weights[name] = torch.ones_like(tensor)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def job(folder: Path, target: Path, **changes: Any) -> dict[str, Any]:
    base = {
        "task": "embedding",
        "teacher": {"model_id": str(folder / "teacher")},
        "student": {"model_id": str(folder / "student")},
        "dataset": {"path": str(write_rows(target / "rows.jsonl")), "max_length": 24, "eval_fraction": 0.5},
        "output": {"dir": str(target / "out")},
    }
    return merged(base, changes)


def looked(folder: Path, target: Path, rows: int = 256, **changes: Any) -> SentenceDiagnosis:
    found, _ = look(parse_config(job(folder, target, **changes)), rows=rows)
    assert isinstance(found, SentenceDiagnosis)
    return found


def document(program: Program, capsys: Capture, *argv: object) -> dict[str, Any]:
    capsys.readouterr()
    assert program([*map(str, argv), "--json"]) == 0, capsys.readouterr().err
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def vectors(folder: Path, texts: list[str], pooling: str) -> np.ndarray:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = []
    for text in texts:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double().numpy()
        found.append({"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1]}[pooling])
    return np.stack([vector / np.linalg.norm(vector) for vector in found])


def average_precision(cosines: np.ndarray, labels: list[int]) -> float:
    values = []
    for row, label in enumerate(labels):
        order = [other for other in np.argsort(-cosines[row]) if other != row]
        right = [labels[other] == label for other in order]
        ranks = [rank for rank, is_right in enumerate(right, 1) if is_right]
        values.append(np.mean([found / rank for found, rank in enumerate(ranks, 1)]))
    return float(np.mean(values))


def test_what_is_found_is_what_transformers_says(
    program: Program, check_output: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    rows = [{"text": f"{'the quick brown fox jumps over'[: 5 + index % 17]} {index}", "label": index % 3}
            for index in range(24)]  # fmt: skip
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", rows)
    write_rows(tmp_path / "data" / "test.jsonl", rows[::-1])
    dataset = {"path": str(tmp_path / "data"), "eval_split": "test", "eval_fraction": None, "label_column": "label"}
    values = job(folder, tmp_path, dataset=dataset, student={"pooling": "first"})
    config = write_config(tmp_path / "job.yaml", values)
    before = sorted(tmp_path.rglob("*"))
    report = check_output(
        program,
        ["diagnose", str(config), "--rows", "20"],
        values={"config": str(config)},
        shows=[
            "Teacher and student of embedding", "20 evaluation rows of data", "Vectors before training", "first", "±",
            "20 queries: a text finds, by cosine, those of its label", "Layers that see the tokens alike",
            "no trouble shows", "nothing was trained",
        ],
        lines=["✓ nothing\tno trouble shows before training\t"],
        quiet=[],
    )  # fmt: skip
    assert sorted(tmp_path.rglob("*")) == before
    found, pairs = report["diagnosis"], np.triu_indices(20, 1)
    texts, labels = zip(*((row["text"], row["label"]) for row in rows[:3:-1]), strict=True)
    cosines = {}
    for side, name, pooling in (("teacher_encoder", "teacher", "mean"), ("student_before", "student", "first")):
        made = vectors(folder / name, list(texts), pooling)
        cosines[side] = made @ made.T
        told = found[side]
        assert (told["pooling"], told["width"]) == (pooling, made.shape[1])
        assert told["mean_cosine"] == pytest.approx(cosines[side][pairs].mean(), abs=1e-5)
        assert told["cosine_deviation"] == pytest.approx(cosines[side][pairs].std(ddof=1), abs=1e-5)
        assert told["mean_average_precision"] == pytest.approx(average_precision(cosines[side], list(labels)), abs=1e-6)
    expected = scipy.stats.spearmanr(*(of[pairs] for of in cosines.values())).statistic
    assert found["rank_correlation"] == pytest.approx(expected, abs=1e-3)
    assert (found["rows"], found["queries"], found["labelled"], found["cosine"]) == (20, 20, True, None)
    assert report["vocabulary"]["verdict"] == "identical"
    assert found["layers"]["by_cka"] == [list(pair) for pair in pairs_by_cka(found["layers"]["cka"])]
    assert found["layers"]["uniform"] == [[0, 1]]


def test_it_says_what_a_run_says_before_training(folder: Path, tmp_path: Path) -> None:
    """Of the same rows, with no labels: halves are looked for."""
    student = {"model_id": str(folder / "wide")}
    found = looked(folder, tmp_path, student=student)
    report = distill(parse_config(job(folder, tmp_path, student=student, training={"max_steps": 1})))
    teacher, before = report.teacher_scores, report.student_before
    assert (found.rows, found.queries, found.labelled) == (report.eval_rows, before.targets, False)
    told = found.teacher_encoder
    assert (told.mean_average_precision, told.accuracy) == (teacher.mean_average_precision, teacher.accuracy)
    told = found.student_before
    assert (told.mean_average_precision, told.accuracy) == (before.mean_average_precision, before.accuracy)
    assert found.rank_correlation == before.rank_correlation
    assert found.cosine == pytest.approx(before.cosine, rel=1e-6), "the widths are equal"


@pytest.mark.parametrize("distillation", [{}, LAYERS])
def test_a_teacher_whose_ids_are_others_is_read_by_its_own(
    folder: Path, tmp_path: Path, distillation: dict[str, Any]
) -> None:
    """Whether it reads the texts, or the student's tokens, with which layers are compared in any case."""
    plain = looked(folder, tmp_path, distillation=distillation)
    mapped = looked(folder, tmp_path, distillation=distillation, teacher={"model_id": str(folder / "permuted")})
    assert mapped.rank_correlation == pytest.approx(plain.rank_correlation, abs=1e-6)
    assert plain.layers is not None
    assert mapped.layers is not None
    torch.testing.assert_close(torch.tensor(mapped.layers.cka), torch.tensor(plain.layers.cka))


def test_layers_of_other_vocabularies_are_not_compared(
    program: Program, capsys: Capture, folder: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "job.yaml", job(folder, tmp_path, teacher={"model_id": str(folder / "other")}))
    report = document(program, capsys, "diagnose", config)
    assert report["vocabulary"]["verdict"] == "differing"
    assert report["diagnosis"]["layers"] is None
    assert report["diagnosis"]["rank_correlation"] is not None
    assert program(["diagnose", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "not compared: the vocabularies differ" in shown
    assert "second half among those of all" in shown


def test_a_teacher_to_whom_all_texts_are_alike_is_named(
    program: Program, capsys: Capture, folder: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "job.yaml", job(folder, tmp_path, teacher={"model_id": str(folder / "alike")}))
    found = document(program, capsys, "diagnose", config)["diagnosis"]
    (trouble,) = found["troubles"]
    assert trouble["name"] == "collapsed teacher"
    assert trouble["seen"].startswith("its cosines of pairs of rows are 1.0000 ± ")
    assert "`teacher.pooling`" in trouble["remedy"]
    assert found["teacher_encoder"]["cosine_deviation"] == pytest.approx(0, abs=1e-6)
    assert program(["diagnose", str(config), "-q"]) == 0
    assert capsys.readouterr().out.splitlines() == ["collapsed teacher"]


@pytest.mark.parametrize(
    ("deviation", "rows", "named"), [(0.0099, 10, True), (0.01, 10, False), (0.0099, 9, False), (None, 10, False)]
)
def test_what_is_near_the_threshold_is_not_named(deviation: float | None, rows: int, named: bool) -> None:
    assert bool(list(collapse(Encoder("mean", 8, 0.5, 0.5, 0.9, deviation), rows))) == named


def test_rows_that_are_too_few_are_refused(folder: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "many.jsonl", [{"text": f"row {index}", "label": index % 8} for index in range(40)])
    dataset = {"path": str(rows), "label_column": "label"}
    message = "of the first 1 rows, no two evaluation rows have the same label in column `label`"
    with pytest.raises(DataError, match=message) as raised:
        looked(folder, tmp_path, rows=1, dataset=dataset)
    assert raised.value.hint == "look at more (`--rows`)"
    assert looked(folder, tmp_path, dataset=dataset).labelled
    alone = looked(folder, tmp_path, rows=1)
    assert (alone.queries, alone.rank_correlation, alone.teacher_encoder.mean_cosine) == (1, None, None)
    assert alone.troubles == ()
