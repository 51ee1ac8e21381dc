"""Sentence encoders from end to end: what is learnt, what is scored, what is written, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from entrenar_core import RunReport, distill, parse_config
from entrenar_core.artifact import inspect_folder
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.models.loading import load_model
from entrenar_core.models.sentences import vectors_of
from entrenar_core.training.distillation import plan
from entrenar_distill.cli import main
from first_steps import difference, gradients
from tiny_jobs import merged, write_config, write_rows
from tiny_models import CORPUS, tiny_bert, tiny_llama
from tiny_runs import log, losses, manifest, run, start, wait_until, weights
from tiny_vocabularies import renumbered, shuffled

SMOOTH = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, also with other ids, a narrower student, a teacher of another vocabulary, and a decoder."""
    folder = tmp_path_factory.mktemp("models")
    size = len(AutoTokenizer.from_pretrained(tiny_bert(folder / "teacher", seed=1, initializer_range=0.3)))
    renumbered(folder / "teacher", folder / "permuted", shuffled(size), rows=size + 5)
    tiny_bert(folder / "student", seed=2, hidden_size=16, num_hidden_layers=1, initializer_range=0.2, **SMOOTH)
    tiny_bert(folder / "other", seed=3, initializer_range=0.3, vocab_size=160, tokenizer_texts=CORPUS[1:3])
    tiny_llama(folder / "llama", seed=4, initializer_range=0.2)
    return folder


def job(models: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True, parents=True)
    base = {
        "task": "embedding",
        "teacher": {"model_id": str(models / "teacher")},
        "student": {"model_id": str(models / "student")},
        "dataset": {"path": str(write_rows(folder / "rows.jsonl")), "max_length": 24, "eval_fraction": 0.3},
        "training": {"epochs": 2, "batch_size": 6, "learning_rate": 0.01, "log_every": 1},
        "output": {"dir": str(folder / "out"), "checkpoint_every": 2},
    }
    return merged(base, changes)


def distilled(models: Path, folder: Path, **changes: Any) -> RunReport:
    return distill(parse_config(job(models, folder, **changes)))


# ── A run ──


@pytest.fixture(scope="module")
def report(models: Path, tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return distilled(models, tmp_path_factory.mktemp("run"), training={"epochs": 30})


@pytest.mark.slow
def test_the_student_comes_to_agree_with_its_teacher(report: RunReport) -> None:
    before, after = report.student_before, report.student_scores
    assert report.final_loss < 0.5 * report.initial_loss
    assert before.rank_correlation is not None
    assert after.rank_correlation is not None
    assert after.rank_correlation > before.rank_correlation
    assert after.cosine is None, "the widths differ"
    assert report.teacher_scores.mean_average_precision
    assert after.mean_average_precision is not None
    kept = after.mean_average_precision / report.teacher_scores.mean_average_precision
    assert report.retention == pytest.approx(kept)
    assert (report.majority_accuracy, report.perplexity_ratio, report.labelled_rows) == (None, None, None)


@pytest.mark.slow
def test_the_folder_is_a_bare_model_that_pools_as_it_was_trained(report: RunReport) -> None:
    folder = report.output_dir
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "BertModel"
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling"]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 16
    assert [name for name, on in pooling.items() if on is True] == ["pooling_mode_mean_tokens"]
    inputs = tokenizer(["the quick brown fox", "open"], return_tensors="pt", padding=True)
    found = vectors_of(model, inputs["input_ids"], inputs["attention_mask"], "mean")
    alone = model(**tokenizer("open", return_tensors="pt")).last_hidden_state.mean(1)
    torch.testing.assert_close(found[1:], alone, rtol=1e-4, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: sentence-similarity" in card
    assert "| | mean average precision |" in card
    assert "SentenceTransformer(" in card


@pytest.mark.slow
def test_a_folder_of_ours_teaches_again_with_no_task_named(report: RunReport, models: Path, tmp_path: Path) -> None:
    again = job(models, tmp_path, teacher={"model_id": str(report.output_dir)}, student={"pooling": "first"})
    del again["task"]
    found = distill(parse_config(again))
    assert found.task == "embedding"
    assert found.student_scores.cosine is not None, "the widths are equal"
    assert distill(parse_config(again), force=True).student_scores == found.student_scores


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(models: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "student": {"dropout": 0.2},
        "training": {"epochs": 4, "eval_every": 3, "select": "best"},
        "distillation": {"losses": [{"name": "embedding_cosine"}, {"name": "rkd_angle", "group_size": 3}]},
    }
    folders = [tmp_path / "whole", tmp_path / "cut"]
    jobs = [write_config(folder / "job.yaml", job(models, folder, **settings)) for folder in folders]
    assert run(jobs[0]) == 0, log(jobs[0])
    process = start(jobs[1])
    assert wait_until(lambda: (tmp_path / "cut" / "out" / "checkpoints" / "step-00000004").is_dir(), process)
    process.kill()
    process.join()
    assert run(jobs[1], "--resume") == 0, log(jobs[1])
    assert manifest(jobs[1])["status"] == "complete"
    assert weights(jobs[1]) == weights(jobs[0])
    assert losses(jobs[1]) == losses(jobs[0])


@pytest.mark.slow
def test_the_vocabularies_may_differ(models: Path, tmp_path: Path) -> None:
    found = distilled(models, tmp_path, teacher={"model_id": str(models / "other")}, training={"epochs": 8})
    assert found.final_loss < found.initial_loss
    layers = {"losses": [{"name": "embedding_cosine"}, {"name": "hidden_cosine"}]}
    refused = job(models, tmp_path / "layers", teacher={"model_id": str(models / "other")}, distillation=layers)
    with pytest.raises(Exception, match="vocabular"):
        distill(parse_config(refused))


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["teacher", "permuted"])
def test_layers_are_paired_by_what_they_see(models: Path, tmp_path: Path, teacher: str) -> None:
    """Of models without a head, also where the teacher has the same tokens in another order."""
    layers = {"losses": [{"name": "embedding_cosine"}, {"name": "hidden_cosine", "layers": "cka"}]}
    model = {"model_id": str(models / teacher)}
    found = distilled(models, tmp_path, teacher=model, distillation=layers, training={"epochs": 1})
    assert found.steps > 1


@pytest.mark.slow
def test_a_decoder_learns_by_its_last_token(models: Path, tmp_path: Path) -> None:
    """Also from layers, and from a stream, where the teacher reads the student's tokens."""
    changes: dict[str, Any] = {
        "teacher": {"model_id": str(models / "llama"), "pooling": "last"},
        "student": {"model_id": None, "init_from": {"teacher_layers": [0]}},
        "distillation": {
            "losses": [{"name": "embedding_mse"}, {"name": "in_batch_similarity", "group_size": 3},
                       {"name": "hidden_mse", "layers": "last"}]
        },
        "dataset": {"streaming": True, "eval_rows": 12, "eval_fraction": None},
    }  # fmt: skip
    found = distilled(models, tmp_path, **changes)
    assert type(AutoModel.from_pretrained(found.output_dir)).__name__ == "LlamaModel"
    assert json.loads((found.output_dir / "1_Pooling" / "config.json").read_text())["pooling_mode_lasttoken"] is True
    assert found.student_scores.cosine is not None
    first = next(line for line in map(json.loads, (tmp_path / "out" / "metrics.jsonl").open()) if "losses" in line)
    assert set(first["losses"]) == {"embedding_mse", "in_batch_similarity", "hidden_mse"}


@pytest.mark.slow
def test_labels_judge_the_vectors_where_their_column_is_named(models: Path, tmp_path: Path) -> None:
    found = distilled(models, tmp_path, dataset={"label_column": "label"}, training={"epochs": 1})
    assert found.student_scores.targets == found.eval_rows == 12
    assert found.labelled_rows == 28
    assert found.majority_accuracy is None
    assert 0 < (found.teacher_scores.mean_average_precision or 0) < 1
    assert "id2label" not in json.loads((found.output_dir / "config.json").read_text())


@pytest.mark.nightly
def test_two_processes_train_the_student_that_one_trains(models: Path, tmp_path: Path) -> None:
    """28 rows in batches of 6, of which the ranks have groups of 3, and of the last 4 rows one has a group of 1."""
    settings: dict[str, Any] = {
        "training": {"epochs": 2, "gradient_accumulation": 2},
        "distillation": {"losses": [{"name": "embedding_cosine"}, {"name": "in_batch_similarity", "group_size": 3}]},
    }
    folders = [tmp_path / "one", tmp_path / "two"]
    jobs = [write_config(folder / "job.yaml", job(models, folder, **settings)) for folder in folders]
    assert run(jobs[0]) == 0, log(jobs[0])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, "-m", "entrenar_distill", "run", str(jobs[1])],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert losses(jobs[1]) == pytest.approx(losses(jobs[0]), rel=1e-5)
    one, two = (json.loads((folder / "out" / "report.json").read_text())["student_scores"] for folder in folders)
    assert two["rank_correlation"] == pytest.approx(one["rank_correlation"], abs=0.02)


# ── The gradient ──


OBJECTIVES: dict[str, list[dict[str, Any]]] = {
    "rows": [{"name": "embedding_cosine", "weight": 2.0}, {"name": "embedding_mse", "projection": "mlp"}],
    "groups": [{"name": "in_batch_similarity", "group_size": 4}, {"name": "embedding_cosine", "projection": "linear"}],
}


@pytest.mark.parametrize("pool", ["mean", "first", "last"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_how_a_step_is_cut_does_not_reach_the_gradient(models: Path, tmp_path: Path, objective: str, pool: str) -> None:
    """Relations are cut between groups: 8 × 1 and 4 × 2 have groups of 4. DDP wants a gradient of every parameter."""
    cuts = [(8, 1), (4, 2), (2, 4), (1, 8)] if objective == "rows" else [(8, 1), (4, 2)]
    folders = models / "teacher", models / "student"
    whole, *others = (
        gradients("embedding", folders, tmp_path / str(cut), cut=cut, entries=OBJECTIVES[objective], pool=pool)
        for cut in cuts
    )
    student = load_model(inspect_folder(models / "student"), EMBEDDING)
    assert {name for name in whole if name.startswith("student.")} == {
        f"student.{n}" for n, _ in student.named_parameters()
    }
    assert any(name.startswith("layers.") for name in whole), "projections have gradients"
    assert max(difference(other, whole) for other in others) <= 1e-6


def test_padding_does_not_reach_a_vector(models: Path) -> None:
    model = load_model(inspect_folder(models / "student"), EMBEDDING)
    assert model.pooler is None
    ids, mask = torch.tensor([[2, 9, 30, 3]]), torch.ones(1, 4, dtype=torch.long)
    longer = torch.cat([ids, torch.tensor([[7, 8, 9]])], 1), torch.cat([mask, torch.zeros(1, 3, dtype=torch.long)], 1)
    for pool in ("mean", "first", "last"):
        plain, padded = vectors_of(model, ids, mask, pool), vectors_of(model, *longer, pool)
        torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-6)


# ── What is refused, and what is told before ──


def test_the_plan_names_all_losses(models: Path, tmp_path: Path) -> None:
    assert plan(parse_config(job(models, tmp_path))).loss == "1 × embedding_cosine"
    extended = {"relations": {"loss": "in_batch_similarity", "weight": 0.5}, "progressive": {"weight": 0.2}}
    longer = plan(parse_config(job(models, tmp_path, distillation=extended, training={"batch_size": 8})))
    assert longer.loss == (
        "1 × embedding_cosine + 0.2 × hidden_mse(layers=uniform) + 0.5 × in_batch_similarity(layers=vectors)"
    )


BAD: list[tuple[dict[str, Any], str]] = [
    ({"distillation": {"alpha": 0.7}}, "`distillation.alpha` is about logits or labels, and the task embedding"),
    ({"distillation": {"temperature": 3.0}}, "`distillation.temperature` is about logits or labels"),
    ({"distillation": {"divergence": "jsd"}}, "`distillation.divergence` is about logits or labels"),
    (
        {"distillation": {"losses": [{"name": "embedding_cosine"}, {"name": "forward_kl"}]}},
        "`distillation.losses[1]`: forward_kl needs logits, and the task embedding has none",
    ),
    (
        {"distillation": {"losses": [{"name": "cross_entropy"}]}},
        "`distillation.losses[0]`: cross_entropy needs labels, and the task embedding has none",
    ),
    (
        {"distillation": {"losses": [{"name": "embedding_mse", "projection": "none"}]}},
        "`distillation.losses[0].projection: none` needs one width, and the student has 16, the teacher 32",
    ),
    (
        {"distillation": {"losses": [{"name": "rkd_angle", "pool": "last", "group_size": 6}]}},
        "`distillation.losses[0].pool` is of layers, and the vectors of sentences are compared",
    ),
    ({"teacher": {"finetune": {"method": "probe"}}}, "`teacher.finetune` fits a classifier, and the task is embedding"),
    ({"training": {"baseline": True}}, "`training.baseline` trains on the labels alone"),
    ({"dataset": {"labelled_rows": 8}}, "`dataset.labelled_rows` is about classes, and embedding has none"),
    ({"dataset": {"prompt_column": "text", "completion_column": "text"}}, "is not read: embedding reads text_column"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
@pytest.mark.parametrize("command", ["validate", "run"])
def test_what_means_nothing_is_refused_by_name(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str, command: str
) -> None:
    file = write_config(tmp_path / "job.yaml", job(models, tmp_path, **change))
    assert main([command, str(file), "--json"]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    error = json.loads(err)["error"]
    assert message.removeprefix("`").partition("`:")[2] in error["message"] or message in error["message"]
    assert message in error["message"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": {"pooling": "mean"}}, "`student.pooling` is of sentence encoders, and the task is causal-lm"),
        (
            {"distillation": {"losses": [{"name": "embedding_cosine"}]}},
            "`distillation.losses[0]`: embedding_cosine compares the vectors of sentences, and the task is causal-lm",
        ),
        (
            {"distillation": {"losses": [{"name": "rkd_angle", "layers": "vectors", "group_size": 6}]}},
            "`distillation.losses[0]`: rkd_angle compares the vectors of sentences, and the task is causal-lm",
        ),
    ],
)
def test_other_tasks_have_no_vectors(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    llama = {"model_id": str(models / "llama")}
    values = job(models, tmp_path, task="causal-lm", teacher=llama, **merged({"student": llama}, change))
    assert main(["run", str(write_config(tmp_path / "job.yaml", values)), "--json"]) == 2
    assert message in json.loads(capsys.readouterr().err)["error"]["message"]
