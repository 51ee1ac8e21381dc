"""A cache of a teacher says what the teacher says, however it was built, and is refused where it does not belong."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from cached_jobs import FP32, Job, built, forward_passes_of_layers, job, sure_models, using, varied_rows
from entrenar_core import parse_config
from entrenar_core.errors import ConfigError, DataError, EntrenarError, UsageError
from entrenar_core.losses.targets import HeadRows
from entrenar_core.teachers.cache.opening import open_cache
from entrenar_core.teachers.cache.planning import Costs, collated, plan_cache
from entrenar_core.teachers.cache.settings import CacheForecast, CacheSettings
from entrenar_core.teachers.cache.teacher import CachedTeacher
from entrenar_core.teachers.live import LiveTeacher
from entrenar_core.training.assembly import make_accelerator
from entrenar_core.training.preparation import Preparation
from entrenar_core.training.preparing import prepare
from entrenar_distill.cli import main
from tiny_jobs import Models, language, write_config, write_rows
from tiny_models import tiny_bert, tiny_llama
from tiny_runs import start_program, wait_until
from tiny_vocabularies import edit_tokenizer
from watched_runs import run, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_home")]

SMALL_SHARDS = 8_000


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return sure_models(tmp_path_factory.mktemp("sure"))


def both(job: Job, folder: Path) -> tuple[Preparation, LiveTeacher, CachedTeacher]:
    prepared = prepare(parse_config(job))
    from entrenar_core.models.loading import load_model

    model = load_model(prepared.teacher, prepared.task)
    live = LiveTeacher(model, make_accelerator(prepared.config), prepared.counting, prepared.output_layer(model))
    opened, _ = open_cache(folder, "cpu")
    return prepared, live, CachedTeacher(opened.store, opened.kind, opened.layers)


# ── It says what the teacher says ──


def test_of_the_batches_of_the_build_hidden_states_in_fp32_are_the_bits_of_the_teacher(
    sure: Models, tmp_path: Path
) -> None:
    file = job(sure, tmp_path)
    built(file, tmp_path / "cache")
    prepared, live, cached = both(file, tmp_path / "cache")
    plan = plan_cache(prepared, Costs(1), batch_size=prepared.config.training.evaluation_batch_size, shard_bytes=1)
    batches = [batch for shard in plan.shards for batch in shard]
    assert len(batches) > 5
    for rows in batches:
        batch = collated(prepared, rows)
        said, kept = live.rows(batch), cached.rows(batch)
        assert isinstance(said, HeadRows)
        assert isinstance(kept, HeadRows)
        assert torch.equal(kept.hidden_NH, said.hidden_NH)
        assert torch.equal(kept.of(slice(None)), said.of(slice(None)))


def test_of_other_batches_they_are_the_teachers_to_1e_5(sure: Models, tmp_path: Path) -> None:
    """Shuffled, of another size, padded otherwise."""
    file = job(sure, tmp_path)
    built(file, tmp_path / "cache")
    prepared, live, cached = both(file, tmp_path / "cache")
    order = torch.randperm(len(prepared.train_tokens), generator=torch.Generator().manual_seed(0)).tolist()
    for start in range(0, len(order), 7):
        batch = prepared.collator([prepared.train_tokens[index] for index in order[start : start + 7]])
        said, kept = live.rows(batch), cached.dense(batch)
        torch.testing.assert_close(kept.of(slice(None)), said.of(slice(None)), rtol=1e-5, atol=1e-5)


def test_a_run_from_the_cache_is_the_run_from_the_teacher_and_asks_it_nothing(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, distillation={"temperature": {"schedule": "linear", "start": 3.0, "end": 1.0}})
    built(file, tmp_path / "cache")
    live, live_watch = run(file)
    of_live = weights(tmp_path)
    with forward_passes_of_layers(2) as read:
        cached, watch = run(using(file, tmp_path / "cache"))
    assert read == []
    assert [step.loss for step in watch.steps] == pytest.approx([step.loss for step in live_watch.steps], rel=1e-5)
    for name, tensor in weights(tmp_path).items():
        torch.testing.assert_close(tensor, of_live[name], rtol=1e-4, atol=1e-5)
    assert cached.teacher_scores.cross_entropy == pytest.approx(live.teacher_scores.cross_entropy, rel=1e-6)
    assert cached.student_scores.kl == pytest.approx(live.student_scores.kl, rel=1e-4)
    assert cached.teacher.parameters == live.teacher.parameters


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        (CacheSettings(precision="float16"), 1e-3),
        (CacheSettings(precision="bfloat16"), 1e-2),
        (CacheSettings(precision="int8"), 2e-2),
        (CacheSettings(kind="topk", top_k=319), 2e-3),
    ],
)
def test_a_run_from_fewer_bits_is_near(settings: CacheSettings, tolerance: float, sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, distillation={"temperature": 2.0}, training={"max_steps": 3})
    manifest = built(file, tmp_path / "cache", settings)
    assert manifest.measured is not None
    assert 0 < manifest.measured["gradient_angle"] < 3
    live, _ = run(file)
    cached, _ = run(using(file, tmp_path / "cache"))
    assert cached.final_loss == pytest.approx(live.final_loss, rel=tolerance)
    assert cached.teacher_scores.cross_entropy == pytest.approx(live.teacher_scores.cross_entropy, rel=tolerance)
    assert cached.teacher_scores.accuracy == pytest.approx(live.teacher_scores.accuracy, abs=0.02)


def test_a_top_k_cache_is_the_selection_of_as_many_tokens(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, distillation={"temperature": 2.0, "top_k": 12}, training={"max_steps": 3})
    built(file, tmp_path / "cache", CacheSettings(kind="topk", top_k=12))
    live, _ = run(file)
    cached, _ = run(using(file, tmp_path / "cache"))
    assert cached.final_loss == pytest.approx(live.final_loss, rel=1e-3)
    assert cached.student_scores.kl is None, "too little is known of the teacher for it"
    assert cached.student_scores.agreement == pytest.approx(live.student_scores.agreement, abs=0.01)


def test_a_top_k_cache_serves_the_schedule_that_it_was_built_for(sure: Models, tmp_path: Path) -> None:
    schedule = {"temperature": {"schedule": "linear", "start": 20.0, "end": 0.5}}
    file = job(sure, tmp_path, distillation=schedule, training={"max_steps": 3})
    built(file, tmp_path / "cache", CacheSettings(kind="topk", top_k=319))
    live, _ = run(file)
    cached, _ = run(using(file, tmp_path / "cache"))
    assert cached.final_loss == pytest.approx(live.final_loss, rel=5e-3)


def test_draws_teach(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path, training={"epochs": 6})
    built(file, tmp_path / "cache", CacheSettings(kind="sampled", samples=50))
    live, _ = run(file)
    cached, watch = run(using(file, tmp_path / "cache"))
    assert cached.student_scores.cross_entropy == pytest.approx(live.student_scores.cross_entropy, rel=0.1)
    assert watch.steps[-1].loss < watch.steps[0].loss


def test_masked_texts_are_kept_as_they_are_masked_in_every_epoch(tmp_path: Path) -> None:
    rows = varied_rows(tmp_path)
    file: Job = {
        "teacher": {"model_id": str(tiny_bert(tmp_path / "teacher", head="MaskedLM", initializer_range=0.4))},
        "student": {"init_from": {"teacher_layers": 1}},
        "dataset": {"path": str(rows), "max_length": 16},
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01},
        "output": {"dir": str(tmp_path / "out")},
    }
    manifest = built(file, tmp_path / "cache")
    live, _ = run(file)
    cached, _ = run(using(file, tmp_path / "cache"))
    assert cached.final_loss == pytest.approx(live.final_loss, rel=1e-4)
    assert manifest.rows > 100, "54 rows in two epochs, and 6 for evaluation, less those that are masked alike"
    file["training"]["epochs"] = 3
    with pytest.raises(
        DataError, match=r"lacks \d+ rows of this data, such as row \d+ of the train rows as masked in epoch 2"
    ):
        run(using(file, tmp_path / "cache"))


# ── How it is built ──


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".safetensors"}


def test_a_build_that_is_killed_and_stopped_ends_with_the_bytes_of_one_that_is_not(
    sure: Models, tmp_path: Path
) -> None:
    file = write_config(tmp_path / "job.yaml", job(sure, tmp_path))
    command = ["cache", "build", str(file), "--precision", "float32", "--shard-size", str(SMALL_SHARDS)]
    assert main([*command, "--output", str(tmp_path / "whole")]) == 0
    assert len(files_of(tmp_path / "whole")) > 6
    cut = tmp_path / "cut"
    for number, how in ((1, signal.SIGKILL), (3, signal.SIGINT)):
        process = start_program([*command, "--output", str(cut)], tmp_path / "log")
        assert wait_until((cut / f"shard-{number:05d}.safetensors").exists, process)
        os.kill(process.pid or 0, how)
        process.join()
        assert not json.loads((cut / "manifest.json").read_text())["shards"]
    there = {name: (cut / name).stat().st_mtime_ns for name in files_of(cut)}
    assert main([*command, "--output", str(cut)]) == 0
    assert files_of(cut) == files_of(tmp_path / "whole")
    assert [name for name, written in there.items() if (cut / name).stat().st_mtime_ns != written] in (
        [],
        ["head.safetensors"],
    )
    assert not [path for path in cut.iterdir() if path.name.startswith(".")]


def test_what_it_takes_is_told_before_and_nothing_is_read_twice(sure: Models, tmp_path: Path) -> None:
    told: list[CacheForecast] = []
    file = job(sure, tmp_path)
    manifest = built(file, tmp_path / "cache", on_forecast=told.append)
    (forecast,) = told
    assert (forecast.rows, forecast.positions) == (manifest.rows, manifest.positions)
    written = sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.safetensors"))
    assert forecast.bytes == pytest.approx(written, rel=0.05)
    assert forecast.positions_per_s is not None
    assert forecast.seconds == pytest.approx(forecast.positions / forecast.positions_per_s)
    before = files_of(tmp_path / "cache")
    assert built(file, tmp_path / "cache", on_forecast=told.append).built == manifest.built
    assert len(told) == 1, "it was there"
    assert files_of(tmp_path / "cache") == before


def test_info_tells_what_was_built(sure: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_config(tmp_path / "job.yaml", job(sure, tmp_path))
    build = ["cache", "build", str(file), "-o", str(tmp_path / "cache"), "--kind", "topk", "--top-k", "9", "--json"]
    assert main(build) == 0
    report = json.loads(capsys.readouterr().out)
    assert main(["cache", "info", str(tmp_path / "cache"), "--json", "--verify"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (report.pop("verified"), info.pop("verified")) == (False, True)
    assert info == report
    assert info["kind"] == {"name": "topk", "k": 9, "lowest": 1.0, "highest": 2.0, "vocabulary": 320}
    assert info["bytes"] == sum(
        (tmp_path / "cache" / f"shard-{n:05d}.safetensors").stat().st_size for n in range(info["shards"])
    )
    assert set(info["measured"]) == {
        "positions",
        "noise",
        "temperature",
        "kl",
        "kl_live",
        "gradient_angle",
        "position_angle",
    }
    assert main(["cache", "info", str(tmp_path / "cache")]) == 0
    assert "the likeliest 9 tokens" in capsys.readouterr().out


# ── What is refused ──


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_a_changed_byte_is_found(sure: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = job(sure, tmp_path)
    built(file, tmp_path / "cache")
    shard = tmp_path / "cache" / "shard-00000.safetensors"
    flip(shard, shard.stat().st_size // 2)
    assert main(["cache", "info", str(tmp_path / "cache"), "--verify"]) == 1
    assert "shard-00000.safetensors is damaged: row" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(DataError, match="is damaged"):
        run(using(file, tmp_path / "cache"))
    built(file, tmp_path / "cache")
    run(using(file, tmp_path / "cache"))


def test_a_changed_byte_of_the_head_is_found(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path)
    built(file, tmp_path / "cache")
    head = tmp_path / "cache" / "head.safetensors"
    whole = head.read_bytes()
    flip(head, head.stat().st_size // 2)
    assert main(["cache", "info", str(tmp_path / "cache"), "--verify"]) == 1
    with pytest.raises(DataError, match=r"head\.safetensors is damaged"):
        run(using(file, tmp_path / "cache"))
    built(file, tmp_path / "cache")
    assert head.read_bytes() == whole


def test_diagnostics_that_look_at_whole_distributions_are_refused(sure: Models, tmp_path: Path) -> None:
    for kind in ("topk", "sampled"):
        folder = tmp_path / kind
        built(job(sure, tmp_path), folder, CacheSettings(kind=kind))  # type: ignore[arg-type]
        watched = job(sure, tmp_path, training={"diagnose_every": 1, "max_steps": 1})
        with pytest.raises(ConfigError, match=r"`training\.diagnose_every` looks at the whole distribution"):
            run(using(watched, folder))
    built(job(sure, tmp_path), tmp_path / "hidden")
    run(using(watched, tmp_path / "hidden"))


def change_tokenizer(file: Job, _: Path) -> None:
    folder = Path(file["teacher"]["model_id"])
    edit_tokenizer(folder, lambda content: content.__setitem__("normalizer", {"type": "Lowercase"}))


def change_weights(file: Job, folder: Path) -> None:
    tiny_llama(Path(file["teacher"]["model_id"]), seed=9)


def change_row(file: Job, folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    rows[7]["text"] += " changed"
    write_rows(folder / "rows.jsonl", rows)


def change_length(file: Job, folder: Path) -> None:
    file["dataset"]["max_length"] = 12


def change_dtype(file: Job, folder: Path) -> None:
    file["teacher"]["dtype"] = "bfloat16"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_tokenizer, "the tokenizer"),
        (change_weights, "the teacher's weights"),
        (change_row, r"lacks 1 rows of this data, such as row 7 of the (train|evaluation) rows: '7 the fox +changed"),
        (change_length, r"`dataset.max_length` \(16 when it was built, 12 now\)"),
        (change_dtype, r"`teacher.dtype` \(float32 when it was built, bfloat16 now\)"),
    ],
)
def test_what_it_was_made_of_is_named_when_it_is_another(change: Any, named: str, tmp_path: Path) -> None:
    teacher = tiny_llama(tmp_path / "teacher")
    file = job(Models(teacher, teacher, teacher, teacher, teacher), tmp_path)
    built(file, tmp_path / "cache")
    change(file, tmp_path)
    with pytest.raises(EntrenarError, match=named):
        run(using(file, tmp_path / "cache"))


def test_a_chat_template_that_changed_is_named(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    teacher = tiny_llama(tmp_path / "teacher")
    (teacher / "chat_template.jinja").write_text(template)
    turns = [[{"role": "user", "content": f"fox {n}"}, {"role": "assistant", "content": f"dog {n}"}] for n in range(30)]
    write_rows(tmp_path / "rows.jsonl", [{"messages": turn} for turn in turns])
    file = language(
        Models(teacher, teacher, teacher, teacher, teacher),
        tmp_path,
        dataset={"messages_column": "messages", "max_length": 64},
    )
    built(file, tmp_path / "cache")
    run(using(file, tmp_path / "cache"))
    (teacher / "chat_template.jinja").write_text(template.replace(": ", "> "))
    with pytest.raises(ConfigError, match="the chat template"):
        run(using(file, tmp_path / "cache"))


def test_fewer_rows_another_order_and_other_batches_still_hit(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path)
    built(file, tmp_path / "cache")
    lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(reversed(lines[:40])))
    other = using(file, tmp_path / "cache") | {
        "training": {"epochs": 1, "batch_size": 5, "seed": 8, "learning_rate": 0.01}
    }
    report, _ = run(other)
    assert report.train_rows == 36


@pytest.mark.parametrize(
    ("settings", "distillation", "message"),
    [
        (FP32, {"progressive": {}}, "`distillation.progressive` compares layers, and the hidden cache shows none"),
        (CacheSettings(kind="topk", top_k=9), {"top_k": 10}, "`top_k` 10, and the topk cache has the likeliest 9"),
        (CacheSettings(kind="topk"), {"divergence": "bild"}, "the student's likeliest tokens are to the teacher"),
        (CacheSettings(kind="topk"), {"entropy_threshold": 1.0}, "asks for the teacher's entropy"),
        (CacheSettings(kind="topk"), {"temperature": 8.0}, "another temperature than the topk cache knows"),
        (CacheSettings(kind="sampled"), {"divergence": "jsd"}, "only forward_kl over all tokens is known without bias"),
        (CacheSettings(kind="sampled"), {"temperature": 3.0}, "the sampled cache was drawn at temperature 2"),
    ],
)  # fmt: skip
def test_a_loss_that_asks_for_more_is_refused_before_the_first_step(
    settings: CacheSettings, distillation: dict[str, Any], message: str, sure: Models, tmp_path: Path
) -> None:
    built(job(sure, tmp_path), tmp_path / "cache", settings)
    with pytest.raises(ConfigError) as refused:
        run(using(job(sure, tmp_path, distillation=distillation), tmp_path / "cache"))
    assert message in refused.value.message
    assert not (tmp_path / "out").exists()


def test_what_is_no_cache_is_refused(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path)
    with pytest.raises(DataError, match="holds no cache"):
        run(using(file, tmp_path / "nothing"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "manifest.json").write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        run(using(file, tmp_path / "cache"))
    shutil.rmtree(tmp_path / "cache")
    built(file, tmp_path / "cache", CacheSettings(precision="float32", shard_bytes=SMALL_SHARDS))
    (tmp_path / "cache" / "shard-00001.safetensors").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.safetensors is missing"):
        run(using(file, tmp_path / "cache"))
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    (tmp_path / "cache" / "manifest.json").write_text(json.dumps(manifest | {"shards": []}))
    with pytest.raises(ConfigError, match="is not complete"):
        run(using(file, tmp_path / "cache"))


def test_a_folder_of_something_else_is_not_touched(sure: Models, tmp_path: Path) -> None:
    file = job(sure, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for force in (False, True):
        with pytest.raises(UsageError, match="holds something else than a cache"):
            built(file, tmp_path / "mine", force=force)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    built(file, tmp_path / "cache")
    before = files_of(tmp_path / "cache")
    with pytest.raises(UsageError, match="holds a cache of another kind: hidden, and topk is asked for"):
        built(file, tmp_path / "cache", CacheSettings(kind="topk"))
    assert files_of(tmp_path / "cache") == before
    assert built(file, tmp_path / "cache", CacheSettings(kind="topk"), force=True).kind["name"] == "topk"


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"distillation": {"temperature": {"schedule": "linear", "start": 4.0, "end": 1.0}}},
         CacheSettings(kind="sampled"), "draws are made at one temperature"),
        ({}, CacheSettings(kind="logits"), "--kind logits is not for language models"),
        ({}, CacheSettings(kind="topk", top_k=320), "--top-k 320 of 320 tokens leaves out none"),
        ({}, CacheSettings(kind="topk", samples=5), "--samples changes nothing of --kind topk"),
        ({}, CacheSettings(kind="sampled", samples=256), "256 draws of a position"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused(
    changes: dict[str, Any], settings: CacheSettings, message: str, sure: Models, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        built(job(sure, tmp_path, **changes), tmp_path / "cache", settings)
