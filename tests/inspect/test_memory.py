"""`entrenar-inspect memory` as a user calls it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, LlamaConfig

from entrenar_core.architectures.reference_sizes import reference_sizes
from entrenar_inspect.cli import main

LLAMA = LlamaConfig(
    hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_hidden_layers=2,
    vocab_size=512,
    max_position_embeddings=256,
    architectures=["LlamaForCausalLM"],
    dtype="bfloat16",
)
PARAMETERS = 64 * 512 * 2 + 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64) + 64


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A model of which nothing but the configuration is there."""
    LLAMA.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def told(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["memory", *arguments, "--json"]) == status, capsys.readouterr().err
    return dict(json.loads(capsys.readouterr().out))


def test_a_training_in_every_mode(model: str, check_output: Callable[..., dict[str, Any]]) -> None:
    found = check_output(
        main,
        ["memory", model, "--batch-size", "2", "--sequence-length", "32", "--available", "80GB", "--device", "cpu"],
        values={"fits": True, "device": "cpu"},
        shows=["weights", "optimizer", "QLoRA, rank 16", "backward"],
    )
    (part,) = found["parts"]
    assert part["parameters"] == PARAMETERS
    phases = {one["phase"]: one for one in part["phases"]}
    assert phases["optimizer"]["components"]["gradients"] == 4 * PARAMETERS
    steps_of_adamw = 4 * (9 * 2 + 3)  # a step count for each weight tensor
    assert phases["loaded"]["components"]["optimizer"] >= 8 * PARAMETERS
    assert phases["loaded"]["components"]["optimizer"] < 8 * PARAMETERS + 64 * steps_of_adamw


def test_layers_add_up_to_the_model(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, model, "--sequence-length", "32", "--by-layer")
    assert [layer["layer"] for layer in found["layers"]] == [0, 1]
    of_layers = sum(layer["components"]["student weights"] for layer in found["layers"])
    assert of_layers == 4 * (PARAMETERS - 2 * 64 * 512 - 64)
    assert len({layer["components"]["activations"] for layer in found["layers"]}) == 1


@pytest.mark.parametrize(
    ("cheaper", "dearer"),
    [
        (["--optimizer", "sgd"], ["--optimizer", "adamw"]),
        (["--optimizer", "adamw-8bit"], ["--optimizer", "adamw"]),
        (["--gradient-checkpointing"], []),
        ([], ["--full-logits"]),
        ([], ["--attention", "eager"]),
        (["--weights", "bf16"], []),
        (["--method", "lora", "--rank", "2"], ["--method", "lora", "--rank", "16"]),
    ],
)
def test_flags_reach_the_figures(
    model: str, cheaper: list[str], dearer: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shape = [model, "--batch-size", "16", "--sequence-length", "256"]
    assert told(capsys, *shape, *cheaper)["peak_bytes"] < told(capsys, *shape, *dearer)["peak_bytes"]


def test_a_generation_keeps_keys_and_values(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, model, "--inference", "--context", "128", "--batch-size", "2")
    (part,) = found["parts"]
    phases = {one["phase"]: one["components"] for one in part["phases"]}
    assert phases["prefill"]["student weights"] >= 2 * PARAMETERS  # as it is stored
    # 2 layers, keys and values, 2 heads of 16, in 16 bits, for 2 rows
    assert max(one.get("KV cache", 0) for one in phases.values()) >= 2 * 2 * 2 * 16 * 2 * 2 * 128


def test_what_is_kept_in_main_memory_or_elsewhere_leaves_room(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    on_a_gpu = [model, "--device", "cuda", "--available", "8GB"]
    whole, offloaded = (told(capsys, *on_a_gpu, *flags) for flags in ([], ["--offload"]))
    assert offloaded["parts"][0]["host_bytes"] >= 12 * PARAMETERS
    assert offloaded["peak_bytes"] < whole["peak_bytes"]
    one, two = (told(capsys, *on_a_gpu, "--inference", *flags) for flags in ([], ["--device-map", "--devices", "2"]))
    shares = [found["parts"][0]["components"]["student weights"] for found in (one, two)]
    assert 0.4 < shares[1] / shares[0] < 0.9


def test_layers_that_bitsandbytes_stored_are_counted_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    for name, settings in (("plain", None), ("nf4", stored), ("gptq", {"quant_method": "gptq", "bits": 4})):
        LLAMA.save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        more = {} if settings is None else {"quantization_config": settings}
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **more}))
    found = {name: told(capsys, str(tmp_path / name), "--inference", "--context", "16") for name in ("plain", "nf4")}
    weights = {name: one["parts"][0]["phases"][0]["components"]["student weights"] for name, one in found.items()}
    linear = 2 * (64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 128)
    assert weights["plain"] - weights["nf4"] == pytest.approx(linear * (2 - 0.5 - 4 / 64), rel=0.02)
    other = told(capsys, str(tmp_path / "gptq"), "--inference", "--context", "16")
    assert [one for one in other["assumptions"] if "is stored as gptq has it" in one]


def test_layers_of_a_generation_keep_keys_and_values(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, model, "--inference", "--context", "64", "--by-layer", "--weights", "fp32")
    kept = 2 * 2 * 16 * 64 * 4  # keys and values of 2 heads of 16 for 64 tokens
    assert [layer["components"]["KV cache"] for layer in found["layers"]] == [kept, kept]
    of_layers = sum(layer["components"]["student weights"] for layer in found["layers"])
    assert of_layers == 4 * (PARAMETERS - 2 * 64 * 512 - 64)


def test_a_generation_that_does_not_fit_is_told_what_would_help(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [model, "--inference", "--context", "256", "--batch-size", "64", "--device", "cpu", "--available"]
    whole = told(capsys, *flags, "8GB")
    less = f"{(whole['needed_bytes'] - 3_000_000) / 1e6:.0f}MB"
    found = told(capsys, *flags, less, status=1)
    names = {one["name"] for one in found["changes"]}
    assert {"--batch-size 32", "--context 128"} <= names
    assert "--weights nf4" in names
    (way,) = found["enough"]
    changed = [*flags[:1], "--inference", "--context", "256", "--batch-size", "64", "--device", "cpu", *way.split()]
    again = told(capsys, *changed, "--available", less)
    assert again["fits"] is True
    quantised = told(capsys, *flags, "8GB", "--weights", "nf4")
    peaks = {one["name"]: one["peak_bytes"] for one in found["changes"]}
    assert quantised["peak_bytes"] == peaks["--weights nf4"]
    assert again["peak_bytes"] == next(one["peak_bytes"] for one in found["changes"] if one["name"] == way)


def test_an_encoder_and_a_known_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = BertConfig(hidden_size=64, intermediate_size=128, num_attention_heads=2, num_hidden_layers=2)
    config.save_pretrained(tmp_path)
    assert told(capsys, str(tmp_path), "--sequence-length", "32")["fits"] is True
    found = told(capsys, "tiny-500m", "--sequence-length", "16", "--available", "1TB")
    assert found["parts"][0]["parameters"] == reference_sizes()["tiny-500m"].parameters


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--available", "16"], 2, "`16` has no unit"),
        (["--context", "8"], 2, "--context is of a model that generates"),
        (["--inference", "--sequence-length", "8"], 2, "--sequence-length is of a training"),
        (["--rank", "8"], 2, "--rank is of adapters"),
        (["--inference", "--optimizer", "sgd"], 2, "--optimizer is of a training"),
        (["--inference", "--method", "lora"], 2, "--method is of a training"),
        (["--inference", "--calibrate"], 2, "--calibrate is of a training"),
        (["--weights", "nf4"], 2, "--weights nf4 is of a model that generates"),
        (["--cache-dtype", "float16"], 2, "--cache-dtype is of a model that generates"),
        (["--strategy", "fsdp"], 2, "--strategy fsdp divides models over devices"),
        (["--devices", "3"], 2, "3 devices cannot share 1 row"),
        (["--calibrate", "--available", "64GB"], 2, "--calibrate takes real steps on this machine"),
        (["--device-map"], 2, "--device-map is of a model that generates"),
        (["--inference", "--device-map", "--device", "cpu"], 2, "--device-map puts parts of a model beside a GPU"),
        (["--offload", "--device", "cpu"], 2, "--offload puts parts of a model beside a GPU"),
        (["--method", "lora", "--rank", "1000"], 1, "a rank of 1000"),
        (["--sequence-length", "1000"], 2, "1,000"),
        (["--inference", "--context", "1000"], 2, "1,000"),
    ],
)
def test_mistakes(
    model: str, arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["memory", model, *arguments]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "hint:" in err


def test_what_is_not_there_or_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", str(tmp_path / "nowhere")]) == 1
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    assert main(["memory", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "unheard-of" in err
    assert "Traceback" not in err
