"""`validate`: what is wrong with a model is found, named, and told apart from what is merely odd."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from entrenar_core.conversion import convert
from entrenar_core.formats import WeightFormat
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from entrenar_inspect.reports.validation import Check as Found
from entrenar_inspect.summary import summarize
from entrenar_inspect.validating import validate
from hub_server import HubServer

Check = Callable[..., dict[str, Any]]


@pytest.fixture
def model(bert: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert, tmp_path / "model"))


def found(model: Path, name: str, **how: Any) -> Found:
    return next(check for check in validate(str(model), **how).checks if check.name == name)


def changed(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


def configured(model: Path, **settings: Any) -> Path:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **settings}))
    return model


def test_a_sound_model_passes_strictly_in_all_forms(model: Path, program: Any, check_output: Check) -> None:
    report = check_output(
        program,
        ["validate", str(model), "--strict"],
        values={"strict": True, "format": "safetensors", "checksums": {}, "sound": True},
        shows=["is sound, strictly", "✓ structure", "✓ values", "✓ tensors", "✓ tokenizer"],
        lines=["✓ dtypes\tmatrices are F32"],
    )
    assert {check["status"] for check in report["checks"]} == {"ok"}


def test_sharded_models_are_held_against_their_index(llama: Path, tmp_path: Path) -> None:
    assert found(llama, "shards").status == "ok"
    copy = Path(shutil.copytree(llama, tmp_path / "copy"))
    index = copy / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model.norm.weight"', '"model.nrm.weight"'))
    check = found(copy, "shards")
    assert check.status == "failed"
    assert "the index lists model.nrm.weight, which no shard has" in check.details


def test_a_size_that_an_index_gets_wrong_stops_no_program(llama: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llama, tmp_path / "copy"))
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "metadata": {"total_size": 7}}))
    check = found(copy, "shards")
    assert check.status == "warning"
    assert check.message.startswith("the index says that its tensors take 7 bytes")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_what_is_broken_beside_the_weights_fails_and_is_shown(name: str, llama: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(llama, tmp_path / "copy"))
    (copy / name).write_text("{")
    check = found(copy, {"config.json": "settings", "tokenizer.json": "tokenizer"}[name])
    assert check.status == "failed"
    assert f"{name} is not JSON" in check.message
    with open_model(parse_reference(str(copy))) as model:
        assert any(f"{name} is not JSON" in warning for warning in summarize(model).warnings)


def test_values_that_are_not_finite_are_found_with_their_place(model: Path) -> None:
    name = "encoder.layer.1.output.dense.weight"

    def break_two(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][3, 5], tensors[name][4, 0] = float("nan"), float("inf")

    check = found(changed(model, break_two), "values")
    assert (check.status, check.message) == ("failed", f"tensor {name} has 1 NaN and 1 infinite, the first at [3, 5]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("encoder.layer.0.output.dense.weight"),
            "layer.0.output.dense.weight is missing",
        ),
        (
            lambda tensors: tensors.update({"encoder.layer.0.output.dense.weight": torch.zeros(32, 65)}),
            "has the shape [32, 65], and the others imply [32, 64]",
        ),
    ],
)
def test_tensors_that_are_missing_or_do_not_fit_are_named(
    model: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    check = found(changed(model, change), "tensors")
    assert check.status == "failed"
    assert message in " ".join((check.message, *check.details))


def test_a_tensor_too_many_is_a_warning_which_strict_fails_on(model: Path, program: Any) -> None:
    changed(model, lambda tensors: tensors.update({"extra.weight": torch.zeros(3)}))
    check = found(model, "tensors")
    assert (check.status, "extra.weight" in check.message) == ("warning", True)
    assert program(["validate", str(model)]) == 0
    assert program(["validate", str(model), "--strict"]) == 1


@pytest.mark.parametrize(
    ("settings", "check", "message"),
    [
        ({"num_hidden_layers": 3}, "configuration", "config.json says 3 layers, and the tensors have 2"),
        ({"vocab_size": 999}, "configuration", "a vocabulary of 999"),
        ({"num_attention_heads": 5}, "architecture", "5 heads do not divide the hidden size 32"),
        ({"model_type": "llama"}, "configuration", "config.json says llama, and the tensors are those of bert"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(
    model: Path, settings: dict[str, Any], check: str, message: str
) -> None:
    result = found(configured(model, **settings), check)
    assert result.status == "failed"
    assert message in " ".join((result.message, *result.details))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_matrices_of_zeros_are_a_warning(tmp_path: Path, dtype: torch.dtype) -> None:
    late, middle = torch.zeros(3, 700_000), torch.zeros(100, 4000)
    late[2, 0], middle[50, 7] = 1, 1  # neither in the first nor in the last values
    tensors = {"late": late, "middle": middle, "empty": torch.zeros(64, 32), "minus": torch.full((2, 2), -0.0)}
    tensors |= {"bias": torch.zeros(64), "row": torch.zeros(1, 64), "none": torch.zeros(0, 3)}
    converted = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file({**converted, "ids": torch.zeros(2, 2, dtype=torch.int64)}, tmp_path / "x.safetensors")
    check = found(tmp_path / "x.safetensors", "zeros")
    assert (check.status, check.message) == ("warning", "2 findings")
    assert set(check.details) == {"tensor empty is all zeros", "tensor minus is all zeros"}


@pytest.mark.parametrize(("value", "status"), [(0.0, "warning"), (0.5, "ok")])
def test_zeros_of_quantised_weights_are_found_whatever_their_bytes(tmp_path: Path, value: float, status: str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    blocks = gguf.quantize(np.full((8, 64), value, np.float32), gguf.GGMLQuantizationType.Q4_0)
    assert blocks.any()
    writer.add_tensor("token_embd.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert found(tmp_path / "x.gguf", "zeros").status == status


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adafactor])
def test_the_state_of_an_optimizer_is_no_model(tmp_path: Path, optimizer: type[torch.optim.Optimizer]) -> None:
    layer = torch.nn.Linear(4, 3)
    stepping = optimizer(layer.parameters())
    layer(torch.ones(4)).sum().backward()
    stepping.step()
    torch.save(stepping.state_dict(), tmp_path / "optimizer.pt")
    torch.save({"model": layer.state_dict(), "optimizer": stepping.state_dict()}, tmp_path / "checkpoint.pt")
    check = found(tmp_path / "optimizer.pt", "contents", allow_pickle=True)
    assert (check.status, check.message) == ("warning", "this is the state of an optimizer, and no model")
    assert not validate(str(tmp_path / "optimizer.pt"), allow_pickle=True, strict=True).sound
    checks = validate(str(tmp_path / "checkpoint.pt"), allow_pickle=True).checks
    assert "contents" not in {check.name for check in checks}


def test_a_file_that_is_called_like_the_state_of_a_training_is_told(model: Path, tmp_path: Path) -> None:
    save_file({"exp_avg.0": torch.ones(3)}, tmp_path / "optimizer.safetensors")
    check = found(tmp_path / "optimizer.safetensors", "contents")
    assert (check.status, "optimizer.safetensors is called like" in check.message) == ("warning", True)
    renamed = (model / "model.safetensors").rename(model / "optimizer.safetensors")
    assert "contents" not in {check.name for check in validate(str(renamed)).checks}, "a model, whatever its name"


def test_matrices_of_several_dtypes_are_a_warning(model: Path) -> None:
    name = "encoder.layer.0.output.dense.weight"
    check = found(changed(model, lambda tensors: tensors.update({name: tensors[name].half()})), "dtypes")
    assert (check.status, check.message) == ("warning", f"matrices are F32, but for 1, such as {name}, which is F16")


def test_ids_beyond_the_embeddings_are_found(model: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("word_embeddings.weight")]:
            tensors[name] = tensors[name][:-20].clone()

    check = found(changed(model, cut), "tokenizer")
    assert check.status == "failed"
    assert "ids go up to" in check.message


def test_weights_that_should_be_tied_and_differ_are_found(llama: Path, tmp_path: Path) -> None:
    with open_model(parse_reference(str(llama))) as stored:
        convert(stored, WeightFormat.SAFETENSORS, tmp_path / "model")
    model = tmp_path / "model"
    changed(model, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert found(model, "tied weights").status == "warning", "stored twice, alike"
    changed(model, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"] + 1}))
    assert found(model, "tied weights").status == "failed"


@pytest.mark.parametrize("kind", [WeightFormat.APR, WeightFormat.APR_JSON, WeightFormat.PYTORCH])
def test_every_format_is_validated(model: Path, tmp_path: Path, kind: WeightFormat) -> None:
    with open_model(parse_reference(str(model))) as stored:
        convert(stored, kind, tmp_path / "out")
    report = validate(str(tmp_path / "out"), allow_pickle=True)
    assert report.sound
    assert {"values", "tensors"} <= {check.name for check in report.checks if check.status == "ok"}


@pytest.mark.parametrize("dropped", [None, "blk.0.ffn_up.weight"])
def test_a_gguf_is_held_against_its_family(tmp_path: Path, dropped: str | None) -> None:
    matrices = {"attn_q": (8, 8), "attn_k": (4, 8), "attn_v": (4, 8), "attn_output": (8, 8), "ffn_gate": (12, 8)}
    matrices |= {"ffn_up": (12, 8), "ffn_down": (8, 12), "attn_norm": (8,), "ffn_norm": (8,)}
    shapes = {f"blk.0.{name}.weight": shape for name, shape in matrices.items()}
    shapes |= {"token_embd.weight": (16, 8), "output_norm.weight": (8,)}
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    for name, shape in shapes.items():
        if name != dropped:
            writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check = found(tmp_path / "x.gguf", "tensors")
    expected = "all that a llama" if dropped is None else "model.layers.0.mlp.up_proj.weight is missing"
    assert (check.status, expected in check.message) == ("ok" if dropped is None else "failed", True)


def test_a_changed_byte_of_an_apr_is_found(model: Path, tmp_path: Path) -> None:
    with open_model(parse_reference(str(model))) as stored:
        convert(stored, WeightFormat.APR, tmp_path / "x.apr")
    data = bytearray((tmp_path / "x.apr").read_bytes())
    data[-100] ^= 1
    (tmp_path / "x.apr").write_bytes(data)
    assert found(tmp_path / "x.apr", "checksum").status == "failed"


def test_a_file_that_is_cut_short_says_how_much_is_missing(model: Path, program: Any, capsys: Any) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert program(["validate", str(file)]) == 1
    shown = capsys.readouterr().out
    assert "is not sound" in shown
    assert "1,000 bytes" in shown


def test_checksums_are_those_of_sha256sum(model: Path) -> None:
    import hashlib

    expected = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    assert validate(str(model), checksum=True).checksums == {"model.safetensors": expected}


def test_booleans_other_than_0_and_1_are_odd(tmp_path: Path) -> None:
    save_file({"mask": torch.zeros(64, dtype=torch.bool), "w": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert found(tmp_path / "x.safetensors", "booleans").status == "ok"
    data = bytearray((tmp_path / "x.safetensors").read_bytes())
    data[-9] = 7
    (tmp_path / "x.safetensors").write_bytes(data)
    assert found(tmp_path / "x.safetensors", "booleans").status == "warning"


def test_on_the_hub_headers_alone_are_validated(hub: HubServer, llama: Path, program: Any, capsys: Any) -> None:
    hub.add("org/llama", llama)
    assert program(["validate", "org/llama", "--json"]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["values"] == {
        "name": "values", "status": "skipped", "message": "only headers were read", "details": [],
    }  # fmt: skip
    assert checks["tensors"]["status"] == checks["configuration"]["status"] == "ok"
    assert "tokenizer.json" not in hub.fetched()


def test_a_model_that_is_not_there_is_an_error_and_no_report(tmp_path: Path, program: Any, capsys: Any) -> None:
    assert program(["validate", str(tmp_path / "none.safetensors")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
