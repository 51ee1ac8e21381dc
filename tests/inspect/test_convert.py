"""`convert` at the command line: dtypes by their customary names, sizes, files and folders, and the Hub."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from entrenar_distill.cli import main as export_program
from hub_server import HubServer
from tiny_models import tiny_gguf

Check = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("spelled", "dtype"), [("bf16", torch.bfloat16), ("FP16", torch.float16), ("float32", torch.float32)]
)
def test_weights_are_cast(bert: Path, tmp_path: Path, program: Any, spelled: str, dtype: torch.dtype) -> None:
    assert program(["convert", str(bert), "--to", "safetensors", "-o", str(tmp_path / "out"), "--dtype", spelled]) == 0
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    assert AutoModel.from_pretrained(tmp_path / "out").config.dtype == dtype


def test_in_all_forms(bert: Path, tmp_path: Path, program: Any, check_output: Check) -> None:
    out = tmp_path / "out"
    report = check_output(
        program,
        ["convert", str(bert), "--to", "safetensors", "--output", str(out), "--force", "--dtype", "bf16"],
        values={"source": str(bert), "output": str(out), "format": "safetensors", "copied": 0, "dequantised": {}},
        shows=["Rounding moved", "of the values that changed (root mean square)", "model.safetensors, config.json"],
        lines=["Cast\t39"],
        quiet=[str(out)],
    )
    assert 1e-4 < report["relative_rms"] < 4e-3


def test_what_did_not_happen_takes_no_line(bert: Path, tmp_path: Path, program: Any, capsys: Any) -> None:
    assert program(["convert", str(bert), "--to", "pytorch", "-o", str(tmp_path / "all"), "--dtype", "fp16"]) == 0
    assert "Copied" not in capsys.readouterr().out
    assert program(["convert", str(bert), "--to", "pytorch", "-o", str(tmp_path / "none")]) == 0
    shown = capsys.readouterr().out
    assert "Copied as they are" in shown
    assert not any(word in shown for word in ("Cast", "Dequantised", "Rounding"))


def test_what_is_on_the_hub_is_fetched_and_converted(hub: HubServer, bert: Path, tmp_path: Path, program: Any) -> None:
    hub.add("org/bert", bert)
    out = tmp_path / "model.apr"
    assert program(["convert", "org/bert", "--to", "apr", "--output", str(out)]) == 0
    assert program(["validate", str(out)]) == 0
    assert "model.safetensors" in hub.fetched()


def test_a_format_that_is_none_is_refused_before_anything_is_fetched(
    hub: HubServer, bert: Path, tmp_path: Path, program: Any, capsys: Any
) -> None:
    hub.add("org/bert", bert)
    flags = ["--to", "apr", "--output", str(tmp_path / "x.apr"), "--format", "foo"]
    assert program(["convert", "org/bert", *flags]) == 2
    assert "foo is no format" in capsys.readouterr().err
    assert hub.requests == []


def test_that_weights_were_dequantised_is_said(tmp_path: Path, program: Any, capsys: Any) -> None:
    path = tiny_gguf(tmp_path / "model.gguf")
    assert program(["convert", str(path), "--to", "safetensors", "--output", str(tmp_path / "x.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "(gguf)" in shown
    assert "Copied as they are" in shown


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--dtype", "int4"], "weights are not cast to int4"),
        (["--shard-size", "0"], "a file holds something"),
        (["--shard-size", "5 apples"], "is not a size"),
        (["--to", "ggml"], "'ggml' is not"),
    ],
)
def test_flags_that_cannot_be_meant(
    bert: Path, tmp_path: Path, program: Any, capsys: Any, flags: list[str], complaint: str
) -> None:
    status = program(["convert", str(bert), "--to", "safetensors", "--output", str(tmp_path / "out"), *flags])
    assert status == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_pickle_needs_its_flag(tmp_path: Path, program: Any, capsys: Any) -> None:
    torch.save({"w": torch.randn(3)}, tmp_path / "model.bin")
    command = ["convert", str(tmp_path / "model.bin"), "--to", "safetensors", "-o", str(tmp_path / "x.safetensors")]
    assert program(command) == 1
    assert "--allow-pickle" in capsys.readouterr().err
    assert program([*command, "--allow-pickle"]) == 0


def test_a_folder_becomes_a_gguf_and_that_another(llama: Path, tmp_path: Path, program: Any, capsys: Any) -> None:
    target, smaller = tmp_path / "model.gguf", tmp_path / "small.gguf"
    assert program(["convert", str(llama), "--to", "gguf", "--output", str(target), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["quantization"], report["copied"]) == ("f32", report["tensors"] - 4)  # queries and keys are turned
    flags = ["--to", "gguf", "--output", str(smaller), "--quantize", "q8_0", "--json"]
    assert program(["convert", str(target), *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["types"]) == {"F32", "Q8_0"}
    assert program(["validate", str(smaller)]) == 0


@pytest.mark.nightly
def test_a_folder_becomes_an_onnx_graph(llama: Path, tmp_path: Path, program: Any, capsys: Any) -> None:
    target = tmp_path / "model.onnx"
    assert program(["convert", str(llama), "--to", "onnx", "--output", str(target), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert 0 <= report["largest_difference"] < 1e-3
    assert target.is_file()
    assert any("config.json and tokenizer are not in the file" in note for note in report["notes"])
    assert program(["convert", str(llama), "--to", "onnx", "--output", str(tmp_path / "all"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {"config.json", "tokenizer.json"} <= {path.name for path in (tmp_path / "all").iterdir()}
    assert set(report["files"]) == {path.name for path in (tmp_path / "all").iterdir()}


def test_a_file_says_where_its_model_is_from_as_an_export_does(
    llama: Path, tmp_path: Path, program: Any, capsys: Any
) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    assert program(["convert", str(folder), "--to", "apr", "--output", str(tmp_path / "m.apr")]) == 0
    capsys.readouterr()
    assert export_program(["export", "-i", str(folder), "-o", str(tmp_path / "e.apr")]) == 0
    assert (tmp_path / "m.apr").read_bytes() == (tmp_path / "e.apr").read_bytes()
    with open_model(parse_reference(str(tmp_path / "m.apr"))) as model:
        assert model.metadata["license"] == "apache-2.0"


def test_a_run_that_goes_on_is_not_converted(llama: Path, tmp_path: Path, program: Any, capsys: Any) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "run.json").write_text('{"status": "interrupted"}')
    assert program(["convert", str(folder), "--to", "gguf", "--output", str(tmp_path / "m.gguf")]) == 2
    assert "is interrupted, and has no student yet" in capsys.readouterr().err
