"""`plan` and `compare` on models that are known: figures, limits, what is written, and what is refused."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from entrenar_core.config.finetuning import FineTuneConfig
from entrenar_core.errors import EntrenarError, UsageError
from entrenar_core.units import parse_size
from entrenar_lora.cli import main as program
from entrenar_lora.comparing import Wanted as Compared
from entrenar_lora.comparing import compare
from entrenar_lora.comparing_methods import USUAL, methods_named
from entrenar_lora.planning import Wanted, plan
from hub_server import HubServer
from tiny_models import tiny_llama

SHORT = {"sequence_length": 32, "device": "cuda", "batch_size": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_llama(tmp_path_factory.mktemp("models") / "llama"))


def test_of_a_known_size_the_figures_are_those_that_are_known() -> None:
    """Of Llama-2-7B, whose matrices of attention are 128 of 4096 × 4096."""
    found = compare("7B", Compared(methods="full,lora-16,lora-64", sequence_length=128, batch_size=1))
    assert "llama-2-7b" in str(found.note)
    assert [row.trainable_parameters for row in found.rows] == [6_738_415_616, 16_777_216, 67_108_864]
    full, small, large = found.rows
    assert full.needed_bytes is not None
    assert small.needed_bytes is not None
    assert large.needed_bytes is not None
    assert full.needed_bytes > 16 * 6_738_415_616, "weights, gradients and both moments in 32 bits"
    assert 2 * 6_738_415_616 < small.needed_bytes < large.needed_bytes < full.needed_bytes
    assert full.speed is not None
    assert full.speed.times == 1.0
    assert "counted" in full.speed.how
    assert [one.value for one in small.published] == ["87.24 at rank 8", "70.4 at rank 4", "70.9"]


@pytest.mark.nightly
def test_a_plan_for_a_known_size_fits_its_limit() -> None:
    found = plan("7B", Wanted(vram="16GB"))
    assert found.chosen is not None
    assert found.chosen.needed_bytes <= found.usable_bytes == round(0.95 * parse_size("16GB"))
    assert found.chosen.batch_size == 4
    assert len(found.runners_up) == 2
    assert found.predictions <= 25
    full = compare("7B", Compared(methods="full,lora-16", vram="24GB", sequence_length=128))
    assert [row.fits for row in full.rows] == [False, True]


def test_a_plan_that_is_written_is_one_that_train_takes(model: str, tmp_path: Path) -> None:
    file = tmp_path / "new" / "lora.yaml"
    found = plan(model, Wanted(vram="1GB", write=file, method="qlora", rank=4, targets="q_proj,v_proj", **SHORT))
    assert found.written == str(file)
    assert found.places == ("dataset.path",)
    assert "TO FILL IN" in file.read_text(encoding="utf-8")
    written = FineTuneConfig.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    assert written.model.model_id == model
    assert written.model.quantization is not None
    assert (written.model.quantization.load_in, written.model.dtype) == ("nf4", "bfloat16")
    adapter: Any = written.adapter
    assert (adapter.rank, adapter.alpha, adapter.target_modules) == (4, 8, ("q_proj", "v_proj"))
    assert not adapter.dora
    training = written.training
    assert training.learning_rate == 2e-4
    assert training.batch_size * training.gradient_accumulation == 2
    with pytest.raises(UsageError, match="is there already"):
        plan(model, Wanted(vram="1GB", write=file, **SHORT))


@pytest.mark.parametrize(("method", "dora"), [("full", None), pytest.param("dora", True, marks=pytest.mark.nightly)])
def test_what_was_chosen_is_what_is_written(model: str, tmp_path: Path, method: Any, dora: bool | None) -> None:
    file = tmp_path / "plan.yaml"
    asked = {**SHORT, "batch_size": 1}
    settings: dict[str, Any] = {"full": {}, "dora": {"rank": 2, "targets": "query-value"}}
    plan(model, Wanted(vram="2GB", write=file, method=method, dataset="rows.jsonl", **settings[method], **asked))
    written = FineTuneConfig.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    adapter: Any = written.adapter
    assert (None if adapter is None else adapter.dora) == dora
    assert written.dataset.path == "rows.jsonl"
    assert written.training.mixed_precision == "bf16"


def test_without_room_it_says_by_how_much_and_fails(model: str, check_output: Callable[..., dict[str, Any]]) -> None:
    argv = ["plan", "--model", model, "--vram", "300MB", "--sequence-length", "32", "--batch-size", "1"]
    argv += ["--method", "lora", "--rank", "2", "--targets", "query-value"]
    report = check_output(
        program, argv, values={"chosen": None, "quality": "balanced"}, shows=["Missing"], status=1, repeatable=False
    )
    assert report["missing_bytes"] == report["smallest"]["needed_bytes"] - report["usable_bytes"] > 0
    assert report["smallest"]["micro_batch"] == 1


def run(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    status = program(argv)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["plan", "--model", "7B"], "on which machine"),
        (["plan", "--model", "7B", "--vram", "16"], "has no unit"),
        (["plan", "--model", "7B", "--vram", "16GB", "--revision", "main"], "no revisions"),
        (["plan", "--model", "7B", "--vram", "16GB", "--method", "full", "--rank", "8"], "--rank is of adapters"),
        (["plan", "--model", "7B", "--vram", "16GB", "--sample", "8"], "--sample takes rows"),
        (
            [
                "plan",
                "--model",
                "7B",
                "--vram",
                "16GB",
                "--dataset",
                "rows.jsonl",
                "--sample",
                "8",
                "--rank",
                "4",
                "--targets",
                "attention",
            ],
            "both are given",
        ),
        (["plan", "--model", "7B", "--vram", "16GB", "--method", "full", "--sample", "8"], "--method full has none"),
        (["plan", "--model", "7B", "--vram", "16GB", "--calibrate"], "--calibrate takes real steps"),
        (["plan", "--model", "7B", "--vram", "16GB", "--targets", ","], "names no module"),
        (["compare", "--model", "7B", "--methods", "lorra-16"], "lorra-16 is no method"),
        (["compare", "--model", "7B", "--methods", "ia3-16"], "a number that means nothing"),
        (["compare", "--model", "7B", "--methods", "lora-0"], "a number that means nothing"),
        (["compare", "--model", "7B", "--methods", "full,full"], "twice"),
        (["compare", "--model", "7B", "--methods", ","], "names none"),
    ],
)
def test_what_makes_no_sense_is_refused(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, err = run(argv, capsys)
    assert status == 2
    assert said in err
    assert "hint:" in err


def test_a_model_that_cannot_be_fetched_has_known_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    status, err = run(["plan", "--model", "meta-llama/Llama-2-7b-hf", "--vram", "16GB"], capsys)
    assert status == 1
    assert "--model 7B" in err
    status, err = run(["plan", "--model", "nobody/knows-it", "--vram", "16GB"], capsys)
    assert status == 1
    assert "--model 7B" not in err


def test_a_rank_that_no_matrix_has_is_refused(model: str) -> None:
    with pytest.raises(EntrenarError, match="rank of 4000"):
        plan(model, Wanted(vram="1GB", rank=4000, **SHORT))


def test_each_usual_method_is_one(model: str, check_output: Callable[..., dict[str, Any]]) -> None:
    assert [one.name for one in methods_named(USUAL)] == USUAL.split(",")
    rows = compare(model, Compared(methods="ia3,lora-8,prefix-4", sequence_length=16, vram="1GB")).rows
    layers, hidden, keys, neurons = 2, 32, 16, 64
    attention = 2 * (hidden + hidden) + 2 * (hidden + keys)
    known = [layers * (keys + keys + neurons), layers * 8 * attention, layers * 4 * 2 * keys]
    assert [row.trainable_parameters for row in rows] == known
    assert all(row.fits for row in rows)
    argv = ["compare", "--model", model, "--methods", "full", "--sequence-length", "16", "--vram", "1GB"]
    values = {"batch_size": 4, "device": "cuda"}
    report = check_output(program, argv, values=values, shows=["1.00x", "published"], repeatable=False)
    (full,) = report["rows"]
    assert full["trainable_parameters"] == full["parameters"]


def test_a_method_that_a_model_does_not_take_says_why(tmp_path: Path) -> None:
    from tiny_models import tiny_gpt2

    gpt2 = str(tiny_gpt2(tmp_path))
    (row, other) = compare(gpt2, Compared(methods="bias,lora-2", sequence_length=8, vram="1GB")).rows
    assert row.needed_bytes is None
    assert "peft has no bias" in str(row.why_not)
    assert other.needed_bytes is not None


def test_real_steps_say_how_fast_a_method_is(model: str) -> None:
    asked = Compared(methods="full,lora-2", sequence_length=8, batch_size=1, device="cpu", calibrate=True)
    full, lora = compare(model, asked).rows
    for row in (full, lora):
        assert row.speed is not None
        assert row.speed.how == "measured"
        assert row.speed.seconds is not None
        assert row.speed.seconds > 0


@pytest.mark.nightly
def test_real_steps_say_how_fast_a_plan_is(model: str) -> None:
    found = plan(
        model, Wanted(device="cpu", batch_size=1, sequence_length=8, rank=2, targets="query-value", calibrate=True)
    )
    assert found.chosen is not None
    assert found.chosen.speed.seconds is not None
    assert "measured" in found.chosen.speed.how


def test_of_a_model_on_the_hub_the_configuration_alone_is_fetched(
    hub: HubServer, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(model)
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    hub.add("meta-llama/Llama-2-7b", files)
    line = ["plan", "--model", "meta-llama/Llama-2-7b", "--vram", "16GB", "--method", "auto", "--sequence-length", "32"]
    assert program([*line, "--json"]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["chosen"]["rank"] > 0
    assert hub.fetched() == {"config.json"}
