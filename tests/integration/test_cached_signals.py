"""What a cache keeps beside the logits of language models: layers, classes, sentences; and where it keeps it."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from cached_jobs import FP32, Job, built, forward_passes_of_layers, job, sure_models, using, varied_rows
from entrenar_core.errors import ConfigError, DataError, EntrenarError, UsageError
from entrenar_core.teachers.cache.settings import CacheSettings
from entrenar_distill.cli import main
from tiny_jobs import Models, build_models, classification, merged, write_config, write_rows
from tiny_models import tiny_bert, tiny_llama
from tiny_runs import start_program, wait_until
from tiny_vocabularies import renumbered, shuffled
from watched_runs import run, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]

LAYERED = [
    {"name": "forward_kl", "weight": 0.5},
    {"name": "hidden_mse", "weight": 0.3, "embeddings": True},
    {"name": "attention_kl", "weight": 0.2},
    {"name": "minilm", "weight": 0.2},
    {"name": "rkd_distance", "weight": 0.2},
]


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return sure_models(tmp_path_factory.mktemp("sure"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(tmp_path_factory.mktemp("models"))


def sentences(folder: Path, **changes: Any) -> Job:
    teacher = tiny_bert(folder / "teacher", seed=1, initializer_range=0.3)
    student = tiny_bert(folder / "student", seed=2, hidden_size=16, num_hidden_layers=1)
    base = {
        "task": "embedding",
        "teacher": {"model_id": str(teacher)},
        "student": {"model_id": str(student)},
        "dataset": {"path": str(write_rows(folder / "rows.jsonl")), "max_length": 24, "eval_fraction": 0.3},
        "training": {"epochs": 2, "batch_size": 6, "learning_rate": 0.01},
        "output": {"dir": str(folder / "out")},
    }
    return merged(base, changes)


def require_same_run(file: Job, folder: Path, tolerance: float = 1e-5) -> list[float | None]:
    """A run from the cache is that from the teacher, of two layers, and does not ask it; returns its hit rates."""
    out = Path(file["output"]["dir"]).parent
    live, live_watch = run(file)
    of_live = weights(out)
    with forward_passes_of_layers(2) as read:
        cached, watch = run(using(file, folder))
    assert read == []
    for number, (ours, theirs) in enumerate(zip(watch.steps, live_watch.steps, strict=True)):
        grown = 1 if number == 0 else 50  # a last bit, which processors round in their own ways, grows with each step
        assert ours.losses == pytest.approx(theirs.losses, rel=grown * tolerance)
    for name, tensor in weights(out).items():
        torch.testing.assert_close(tensor, of_live[name], rtol=10 * tolerance, atol=10 * tolerance)
    for scores, expected in (
        (cached.teacher_scores, live.teacher_scores),
        (cached.student_scores, live.student_scores),
    ):
        told = {name: value for name, value in asdict(expected).items() if value is not None}
        assert {name: getattr(scores, name) for name in told} == pytest.approx(told, rel=1e-3)
    return [step.cache_hit_rate for step in watch.steps]


# ── Layers ──


def test_losses_between_layers_learn_from_a_cache_as_from_the_teacher(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, distillation={"losses": LAYERED}, student={"init_from": {"teacher_layers": 1}})
    manifest = built(file, tmp_path / "cache")
    assert manifest.layers is not None
    assert (manifest.layers["hidden"], list(manifest.layers["attention"])) == ([-1, 1], ["1"])
    assert manifest.measured is not None
    assert manifest.measured["layers_error"] < 1e-6
    assert set(require_same_run(file, tmp_path / "cache")) == {1.0}


def test_of_a_classifier_classes_and_layers_are_kept(models: Models, tmp_path: Path) -> None:
    entries = [{"name": "forward_kl", "weight": 0.5}, {"name": "cross_entropy", "weight": 0.5}, *LAYERED[1:]]
    student = {"model_id": str(models.small_classifier)}
    file = classification(models, tmp_path, distillation={"losses": entries}) | {"student": student}
    manifest = built(file, tmp_path / "cache")
    assert manifest.kind == {"name": "logits", "columns": 2}
    require_same_run(file, tmp_path / "cache")


def test_in_fewer_bits_layers_are_near_and_told_how_near(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, distillation={"losses": LAYERED}, training={"max_steps": 2})
    live, _ = run(file)
    errors = []
    for precision in ("float16", "bfloat16", "int8"):
        manifest = built(file, tmp_path / precision, CacheSettings(precision=precision))  # type: ignore[arg-type]
        assert manifest.measured is not None
        errors.append(manifest.measured["layers_error"])
        cached, _ = run(using(file, tmp_path / precision))
        assert cached.final_loss == pytest.approx(live.final_loss, rel=0.03)
    assert 1e-5 < errors[0] < errors[1] < errors[2] < 0.02


def test_layers_that_are_not_kept_are_named(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, distillation={"progressive": {"layer_mapping": [[0, 0]]}})
    built(file, tmp_path / "cache")
    other = merged(file, {"distillation": {"progressive": None, "attention": {"layer_mapping": "final"}}})
    with pytest.raises(ConfigError, match="compare attention of layer 1 of the teacher, which the hidden cache lacks"):
        run(using(other, tmp_path / "cache"))
    chosen = merged(file, {"distillation": {"progressive": {"layer_mapping": "cka"}}})
    with pytest.raises(ConfigError, match="chooses layers by looking at both models"):
        run(using(chosen, tmp_path / "cache"))
    with pytest.raises(UsageError, match="chosen by looking at both models"):
        built(chosen, tmp_path / "another")
    config = write_config(tmp_path / "job.yaml", using(other, tmp_path / "cache"))
    assert main(["validate", str(config)]) == 2


# ── Teachers that read texts by themselves, and sentence encoders ──


def test_a_classifier_of_another_vocabulary_is_kept_by_its_own_tokens(models: Models, tmp_path: Path) -> None:
    student = {"model_id": str(models.other_classifier)}
    file = classification(models, tmp_path) | {"student": student}
    manifest = built(file, tmp_path / "cache", CacheSettings())
    assert manifest.rows == 40
    assert manifest.identity["reads"] == "the texts by itself"
    live, live_watch = run(file)
    cached, watch = run(using(file, tmp_path / "cache"))
    assert [step.loss for step in watch.steps] == pytest.approx([step.loss for step in live_watch.steps], rel=1e-5)
    assert cached.teacher_scores.cross_entropy == pytest.approx(live.teacher_scores.cross_entropy, rel=1e-5)
    lines = (tmp_path / "rows.jsonl").read_text().replace('file 3"', 'file 333"')
    (tmp_path / "rows.jsonl").write_text(lines)
    with pytest.raises(DataError, match=r"lacks 1 rows of this data, such as '.*file 333'"):
        run(using(file, tmp_path / "cache"))
    again, _ = run(using(file, tmp_path / "cache", missing="live"))
    assert again.final_loss == pytest.approx(run(file)[0].final_loss, rel=1e-5)


def test_a_fitted_classifier_is_kept_as_it_was_fitted(models: Models, tmp_path: Path) -> None:
    file = classification(models, tmp_path, teacher={"finetune": {"method": "probe"}})
    built(file, tmp_path / "cache", CacheSettings())
    require_same_run(file, tmp_path / "cache")
    other = merged(file, {"teacher": {"finetune": {"method": "probe", "l2": 0.5}}})
    with pytest.raises(ConfigError, match=r"`teacher\.finetune`, or what the teacher was fitted to"):
        run(using(other, tmp_path / "cache"))


@pytest.mark.parametrize("layers", [False, True], ids=["texts", "layers"])
def test_the_vectors_of_sentences_are_kept(layers: bool, tmp_path: Path) -> None:
    more = [{"name": "hidden_mse", "layers": "final", "weight": 0.5}] if layers else []
    file = sentences(tmp_path, distillation={"losses": [{"name": "embedding_cosine"}, *more]})
    manifest = built(file, tmp_path / "cache", FP32 if layers else CacheSettings())
    assert manifest.kind == {"name": "vectors", "columns": 32}
    assert manifest.measured is not None
    assert manifest.measured["error"] < 1e-5
    require_same_run(file, tmp_path / "cache")
    other = merged(file, {"teacher": {"pooling": "first"}})
    with pytest.raises(ConfigError, match=r"`teacher\.pooling`"):
        run(using(other, tmp_path / "cache"))


# ── In memory ──


def in_memory(file: Job, size: str = "1MB", **settings: Any) -> Job:
    return merged(file, {"teacher": {"cache": {"memory": size, **settings}}})


def test_a_cache_in_memory_asks_the_teacher_once_for_every_row(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, distillation={"losses": LAYERED}, training={"epochs": 3})
    live, live_watch = run(file)
    with forward_passes_of_layers(2) as read:
        cached, watch = run(in_memory(file))
    rows = cached.train_rows + cached.eval_rows
    assert rows <= sum(read) <= rows + 30, "each once, and some to see what passes in layers and at which rate"
    assert [step.loss for step in watch.steps] == pytest.approx([step.loss for step in live_watch.steps], rel=1e-5)
    assert {step.cache_hit_rate for step in watch.steps} == {1.0}
    assert {step.cache_hit_rate for step in live_watch.steps} == {None}
    near, _ = run(in_memory(file, precision="int8"))
    assert near.final_loss == pytest.approx(live.final_loss, rel=0.03)
    assert near.final_loss != cached.final_loss


def test_a_memory_that_is_too_small_is_refused_before_the_teacher_reads(sure: Models, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"takes about .* and `teacher\.cache\.memory` is 9\.0 kB"):
        run(in_memory(job(sure, tmp_path), "9kB"))


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        ({}, "does not say where it is"),
        ({"dir": "x", "memory": "1GB"}, "are two places"),
        ({"dir": "x", "precision": "int8"}, "a folder has its own"),
        ({"memory": "1GB", "missing": "live"}, "memory holds every row"),
        ({"memory": "much"}, r"should be a size such as 2GB, or a number of bytes, not 'much'"),
    ],
)
def test_where_a_cache_is_is_said_once(cache: Job, message: str, sure: Models, tmp_path: Path) -> None:
    with pytest.raises(EntrenarError, match=message):
        run(merged(job(sure, tmp_path), {"teacher": {"cache": cache}}))


# ── Rows that are not there, streams, several processes ──


def test_rows_that_a_cache_lacks_are_read_live_and_counted(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, distillation={"losses": LAYERED}, training={"log_every": 1})
    built(file, tmp_path / "cache")
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    changed = [line.replace("the fox", "a dog") if index % 4 == 0 else line for index, line in enumerate(lines)]
    (tmp_path / "rows.jsonl").write_text("\n".join(changed))
    live, live_watch = run(file)
    cached, watch = run(using(file, tmp_path / "cache", missing="live"))
    assert [step.loss for step in watch.steps] == pytest.approx([step.loss for step in live_watch.steps], rel=1e-5)
    told = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["cache_hit_rate"] for line in told if "cache_hit_rate" in line]
    assert len(rates) == len(watch.steps)
    assert min(rates) < 1
    assert sum(rates) / len(rates) == pytest.approx(0.75, abs=0.06)
    assert cached.teacher_scores.cross_entropy == pytest.approx(live.teacher_scores.cross_entropy, rel=1e-5)


def test_rows_of_a_stream_are_kept_and_found(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, dataset={"streaming": True, "eval_rows": 8})
    manifest = built(file, tmp_path / "cache")
    assert manifest.rows == 60
    require_same_run(file, tmp_path / "cache")


@pytest.mark.nightly
def test_two_processes_build_the_bytes_that_one_builds(sure: Models, tmp_path: Path) -> None:
    file = write_config(tmp_path / "job.yaml", job(sure, tmp_path))
    build = ["cache", "build", str(file), "--precision", "float32", "--shard-size", "8kB", "--output"]
    assert main([*build, str(tmp_path / "one")]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, "-m", "entrenar_distill", *build, str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.safetensors")} for name in ("one", "two")
    )
    assert len(one) > 6
    assert one == two


def test_another_row_count_is_no_other_row(sure: Models, tmp_path: Path) -> None:
    """Rows are known by their tokens: more of them that were read before are found."""
    file = job(sure, tmp_path)
    built(file, tmp_path / "cache", FP32)
    varied_rows(tmp_path, 30)
    assert run(using(file, tmp_path / "cache"))[0].train_rows == 27


def test_a_changed_bit_of_what_says_where_rows_are_is_found(sure: Models, tmp_path: Path) -> None:
    built(job(sure, tmp_path), tmp_path / "cache")
    shard = tmp_path / "cache" / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[content.index(b'"hidden"') + 1] ^= 1
    shard.write_bytes(content)
    assert main(["cache", "info", str(tmp_path / "cache"), "--verify"]) == 1


def test_a_run_does_not_go_on_with_another_cache(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, training={"epochs": 4}, output={"checkpoint_every": 1, "keep": 99})
    built(file, tmp_path / "cache", CacheSettings(kind="topk", top_k=100))
    config = write_config(tmp_path / "job.yaml", using(file, tmp_path / "cache"))
    process = start_program(["run", str(config)], tmp_path / "log")
    assert wait_until((tmp_path / "out" / "checkpoints" / "step-00000002").exists, process)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    built(file, tmp_path / "cache", CacheSettings(kind="topk", top_k=3), force=True)
    assert main(["run", str(config), "--resume"]) != 0
    assert main(["run", str(config), "--force"]) == 0
    assert "cache" in json.loads((tmp_path / "out" / "run.json").read_text())["fingerprints"]


def test_other_ids_of_the_teachers_tokens_are_noticed(tmp_path: Path) -> None:
    teacher = tiny_bert(tmp_path / "teacher", head="MaskedLM", initializer_range=0.4)
    size = len(AutoTokenizer.from_pretrained(teacher))
    renumbered(teacher, tmp_path / "permuted", shuffled(size), rows=size)
    student = tiny_bert(tmp_path / "student", head="MaskedLM", num_hidden_layers=1, seed=3)
    rows = write_rows(tmp_path / "rows.jsonl", [{"text": f"{n} the fox jumps over the dog"} for n in range(30)])
    file: Job = {
        "teacher": {"model_id": str(tmp_path / "permuted")},
        "student": {"model_id": str(student)},
        "dataset": {"path": str(rows), "max_length": 16},
        "training": {"epochs": 1, "batch_size": 8},
        "output": {"dir": str(tmp_path / "out")},
    }
    built(file, tmp_path / "cache")
    run(using(file, tmp_path / "cache"))
    weights_before = (tmp_path / "permuted" / "model.safetensors").read_bytes()
    (tmp_path / "permuted").rename(tmp_path / "before")
    renumbered(teacher, tmp_path / "permuted", shuffled(size, seed=9), rows=size)
    (tmp_path / "permuted" / "model.safetensors").write_bytes(weights_before)
    with pytest.raises(ConfigError, match="the ids of the teacher's tokenizer"):
        run(using(file, tmp_path / "cache"))


def test_a_shard_of_another_cache_or_of_another_place_is_found_and_made_again(sure: Models, tmp_path: Path) -> None:
    """Of a teacher of the same sizes, and of the same rows: all that differs is what was said."""
    file, small = job(sure, tmp_path), CacheSettings(precision="float32", shard_bytes=8_000)
    other = merged(file, {"teacher": {"model_id": str(tiny_llama(tmp_path / "other", seed=8, initializer_range=0.4))}})
    built(file, tmp_path / "cache", small)
    built(other, tmp_path / "theirs", small)
    first, second = (tmp_path / "cache" / f"shard-{number:05d}.safetensors" for number in (0, 1))
    own = first.read_bytes(), second.read_bytes()
    for wrong in ((tmp_path / "theirs" / first.name).read_bytes(), own[1]):
        first.write_bytes(wrong)
        assert main(["cache", "info", str(tmp_path / "cache"), "--verify"]) == 1
        with pytest.raises(DataError, match="is of another cache, or at another's place"):
            run(using(file, tmp_path / "cache"))
        built(file, tmp_path / "cache", small)
        assert (first.read_bytes(), second.read_bytes()) == own


def test_a_manifest_that_cannot_be_read_gives_way_to_force(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path)
    built(file, tmp_path / "cache")
    for broken in ("", "[]", "{}"):
        (tmp_path / "cache" / "manifest.json").write_text(broken)
        with pytest.raises(DataError):
            built(file, tmp_path / "cache")
        assert built(file, tmp_path / "cache", force=True).complete
