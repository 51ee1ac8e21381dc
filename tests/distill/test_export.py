"""`entrenar-distill export`: what it writes, what it refuses, and what it leaves where it fails."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.utility import model_weight_count_rounded_notation
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from entrenar_core.conversion.gguf_writing import size_label
from entrenar_core.importance import ImportanceMatrix, Inputs, write_importance
from entrenar_core.references import PathReference
from entrenar_core.stored_model import open_model
from exported_models import exported_model

Program = Callable[[Sequence[str] | None], int]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of rows that 256 divides, so that every type has its own blocks; not to be written to."""
    return exported_model(
        tmp_path_factory.mktemp("llama") / "model", "llama", hidden_size=256, intermediate_size=256, head_dim=64
    )


def export(program: Program, *flags: object) -> int:
    return program(["export", *map(str, flags)])


def told(program: Program, capsys: Any, *flags: object) -> dict[str, Any]:
    assert export(program, *flags, "--json") == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def types_of(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}


def test_a_gguf_is_quantised_to_the_mix(llama: Path, tmp_path: Path, program: Program, capsys: Any) -> None:
    pytest.importorskip("xllamacpp")
    report = told(program, capsys, "-i", llama, "-o", tmp_path / "model.gguf", "--quantize", "Q4_K_M")
    types = types_of(tmp_path / "model.gguf")
    assert report["quantization"] == "q4_k_m"
    assert types["output.weight"] == "Q6_K"
    assert types["blk.0.attn_q.weight"] == "Q4_K"
    assert types["output_norm.weight"] == "F32"
    assert report["types"] == {kind: list(types.values()).count(kind) for kind in set(types.values())}
    bits = 8 * sum(tensor.n_bytes for tensor in GGUFReader(tmp_path / "model.gguf").tensors)
    values = sum(int(tensor.n_elements) for tensor in GGUFReader(tmp_path / "model.gguf").tensors)
    assert report["bits_per_weight"] == pytest.approx(bits / values)
    assert 0.02 < report["relative_rms"] < 0.1
    assert report["size_bytes"] == (tmp_path / "model.gguf").stat().st_size


def test_the_size_is_told_as_the_gguf_package_tells_it(
    llama: Path, tmp_path: Path, program: Program, capsys: Any
) -> None:
    told(program, capsys, "-i", llama, "-o", tmp_path / "model.gguf")
    values = sum(weight.numel() for weight in load_file(llama / "model.safetensors").values())
    expected = model_weight_count_rounded_notation(values)
    assert GGUFReader(tmp_path / "model.gguf").fields["general.size_label"].contents() == expected
    for count in (1, 160, 999, 134_515_008, 1_100_048_384, 70_553_706_496, 10**12 + 1):
        assert size_label(count) == model_weight_count_rounded_notation(count)


def test_the_format_is_that_of_the_ending(llama: Path, tmp_path: Path, program: Program, capsys: Any) -> None:
    assert told(program, capsys, "-i", llama, "-o", tmp_path / "a.gguf")["format"] == "gguf"
    assert told(program, capsys, "-i", llama, "-o", tmp_path / "a.apr.json")["format"] == "apr-json"
    assert export(program, "-i", llama, "-o", tmp_path / "a") == 2
    assert "does not say in which format" in capsys.readouterr().err


def test_weights_stay_as_they_are_without_a_type(llama: Path, tmp_path: Path, program: Program, capsys: Any) -> None:
    report = told(program, capsys, "-i", llama, "-o", tmp_path / "model.gguf")
    assert report["quantization"] == "f32"
    assert report["relative_rms"] is None
    weights = load_file(llama / "model.safetensors")
    found = next(t for t in GGUFReader(tmp_path / "model.gguf").tensors if t.name == "blk.1.ffn_up.weight")
    np.testing.assert_array_equal(found.data, weights["model.layers.1.mlp.up_proj.weight"].numpy())


def test_where_the_model_is_from_is_told_unless_not_wanted(
    llama: Path, tmp_path: Path, program: Program, capsys: Any
) -> None:
    report = told(program, capsys, "-i", llama, "-o", tmp_path / "with.gguf")
    assert report["files"] == ["with.gguf"]
    assert "general.name" in GGUFReader(tmp_path / "with.gguf").fields
    told(program, capsys, "-i", llama, "-o", tmp_path / "without.gguf", "--no-include-metadata")
    fields = GGUFReader(tmp_path / "without.gguf").fields
    assert "general.name" not in fields
    assert "general.architecture" in fields
    told(program, capsys, "-i", tmp_path / "with.gguf", "-o", tmp_path / "again.gguf", "--quantize", "f16")
    assert "general.name" in GGUFReader(tmp_path / "again.gguf").fields
    bare = ("--quantize", "f16", "--no-include-metadata", "--force")
    told(program, capsys, "-i", tmp_path / "with.gguf", "-o", tmp_path / "again.gguf", *bare)
    assert "general.name" not in GGUFReader(tmp_path / "again.gguf").fields
    for flags, named in (((), True), (("--no-include-metadata",), False)):
        told(program, capsys, "-i", llama, "-o", tmp_path / f"{named}.apr.json", *flags)
        assert ("name" in json.loads((tmp_path / f"{named}.apr.json").read_text())["metadata"]) is named
    told(program, capsys, "-i", llama, "--format", "safetensors", "-o", tmp_path / "card")
    assert "## Files" in (tmp_path / "card" / "README.md").read_text()
    told(program, capsys, "-i", llama, "--format", "safetensors", "-o", tmp_path / "bare", "--no-include-metadata")
    assert not (tmp_path / "bare" / "README.md").exists()


def test_safetensors_are_cut_and_cast(llama: Path, tmp_path: Path, program: Program, capsys: Any) -> None:
    flags = ("--format", "safetensors", "--dtype", "bf16", "--shard-size", "300KB")
    report = told(program, capsys, "-i", llama, "-o", tmp_path / "half", *flags)
    assert "model.safetensors.index.json" in report["files"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["q4_k_m", "q6_k"])
def test_an_apr_has_blocks_of_ggml(llama: Path, tmp_path: Path, program: Program, capsys: Any, kind: str) -> None:
    pytest.importorskip("xllamacpp")
    report = told(program, capsys, "-i", llama, "-o", tmp_path / "model.apr", "--quantize", kind)
    assert report["types"]["F32"] == 5  # the norms
    assert report["types"]["Q6_K"] == (2 if kind == "q4_k_m" else 16)
    name = "model.layers.0.mlp.up_proj.weight"
    with open_model(PathReference(str(tmp_path / "model.apr"))) as model, open_model(PathReference(str(llama))) as was:
        stored = model.array(name), was.array(name)
    assert 0 < np.abs(np.subtract(*stored)).max() < 0.15 * np.abs(stored[1]).max()


REFUSED = [
    (["--quantize", "q4_m"], "'q4_m' is not a type to quantise to", 2),
    (["--quantize", "q4_0", "--dtype", "bf16"], "both say what weights become", 2),
    (["--shard-size", "5MB"], "is a single file", 2),
    (["--imatrix", "a", "--calibration", "b", "--quantize", "q4_0"], "both give an importance matrix", 2),
    (["--calibration", "b"], "changes nothing where nothing is quantised", 2),
    (["--calibration-chunks", "3"], "is how much of --calibration is read", 2),
    (["--save-imatrix", "b"], "keeps what --calibration computes", 2),
    (["--verify-text", "b"], "is what --verify compares on", 2),
    (["--private"], "--private is for what is uploaded", 2),
    (["--imatrix", "nothing.gguf", "--quantize", "q4_0"], "nothing.gguf", 1),
    (["--calibration", "nothing.txt", "--quantize", "q4_0"], "nothing.txt does not exist", 1),
]


@pytest.mark.parametrize(("flags", "message", "status"), REFUSED)
def test_what_cannot_be_meant_is_refused_and_leaves_nothing(
    llama: Path, tmp_path: Path, program: Program, capsys: Any, flags: list[str], message: str, status: int
) -> None:
    assert export(program, "-i", llama, "-o", tmp_path / "model.gguf", *flags) == status
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_there_is_kept(llama: Path, tmp_path: Path, program: Program, capsys: Any) -> None:
    (tmp_path / "model.gguf").write_bytes(b"mine")
    assert export(program, "-i", llama, "-o", tmp_path / "model.gguf") == 1
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "model.gguf").read_bytes() == b"mine"
    assert export(program, "-i", llama, "-o", tmp_path / "model.gguf", "--force") == 0
    assert (tmp_path / "model.gguf").read_bytes()[:4] == b"GGUF"


def test_an_output_that_is_a_link_to_itself_is_replaced(llama: Path, tmp_path: Path, program: Program) -> None:
    (tmp_path / "model.gguf").symlink_to("model.gguf")
    assert export(program, "-i", llama, "-o", tmp_path / "model.gguf") == 0
    assert (tmp_path / "model.gguf").read_bytes()[:4] == b"GGUF"


def test_importances_of_another_model_are_refused(llama: Path, tmp_path: Path, program: Program, capsys: Any) -> None:
    pytest.importorskip("xllamacpp")
    inputs = {"blk.77.ffn_up.weight": Inputs(np.ones((1, 256)), np.ones(1))}
    write_importance(tmp_path / "other.gguf", ImportanceMatrix(inputs, 1, 128, ("text",)))
    flags = ("-i", llama, "-o", tmp_path / "model.gguf", "--imatrix", tmp_path / "other.gguf", "--quantize")
    assert export(program, *flags, "q4_k_m") == 1
    assert "the importance matrix has none of the 16 matrices of" in capsys.readouterr().err
    assert "no tensor is of a type that importances change" in told(program, capsys, *flags, "q8_0")["notes"]


def changed(llama: Path, target: Path, **settings: Any) -> Path:
    target.mkdir()
    for file in llama.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((llama / "config.json").read_text()) | settings
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "gpt_neox"}, "of which no GGUF is written"),
        ({"hidden_act": "relu"}, "`hidden_act: relu`, which llama.cpp does not compute"),
        ({"rope_parameters": {"rope_type": "ntk", "rope_theta": 1e4}}, "the rule ntk"),
        ({"rms_norm_eps": None}, "no number between 0 and 1 for `rms_norm_eps`"),
        ({"num_hidden_layers": 3}, "layers"),
        ({"is_causal": False}, "`is_causal: False`, which llama.cpp does not compute"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "turned by a part of 0.5"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised by bitsandbytes"),
        ({"head_dim": 2**32}, "where a count is meant"),
    ],
)
def test_what_llama_cpp_would_not_compute_is_refused(
    llama: Path, tmp_path: Path, program: Program, capsys: Any, settings: dict[str, Any], message: str
) -> None:
    folder = changed(llama, tmp_path / "model", **settings)
    assert export(program, "-i", folder, "-o", tmp_path / "model.gguf") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["f32", "q4_0"])
def test_a_weight_that_is_no_number_is_refused_by_its_name(
    llama: Path, tmp_path: Path, program: Program, capsys: Any, number: float, kind: str
) -> None:
    folder = changed(llama, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 7] = number
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert export(program, "-i", folder, "-o", tmp_path / "model.gguf", "--quantize", kind) == 1
    assert "model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def reweighed(llama: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object], **settings: Any) -> Path:
    folder = changed(llama, target, **settings)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_weights_that_are_no_floats_are_refused(llama: Path, tmp_path: Path, program: Program, capsys: Any) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = reweighed(llama, tmp_path / "model", lambda weights: weights.update({name: weights[name].to(torch.int8)}))
    assert export(program, "-i", folder, "-o", tmp_path / "model.gguf") == 1
    assert f"tensor {name} is stored as I8" in capsys.readouterr().err


def test_a_tied_head_is_left_out_only_where_it_is_the_embedding(
    llama: Path, tmp_path: Path, program: Program, capsys: Any
) -> None:
    def tie(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    tied = reweighed(llama, tmp_path / "tied", tie, tie_word_embeddings=True)
    told(program, capsys, "-i", tied, "-o", tmp_path / "tied.gguf")
    own = changed(llama, tmp_path / "own", tie_word_embeddings=True)
    told(program, capsys, "-i", own, "-o", tmp_path / "own.gguf")
    assert "output.weight" not in types_of(tmp_path / "tied.gguf")
    assert "output.weight" in types_of(tmp_path / "own.gguf")


@pytest.mark.parametrize("kind", ["safetensors", "apr"])
def test_a_tied_head_that_is_stored_is_written_once(
    llama: Path, tmp_path: Path, program: Program, capsys: Any, kind: str
) -> None:
    def tie(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    tied = reweighed(llama, tmp_path / "tied", tie, tie_word_embeddings=True)
    report = told(program, capsys, "-i", tied, "--format", kind, "-o", tmp_path / kind)
    assert report["tensors"] == len(load_file(tied / "model.safetensors")) - 1
    assert "lm_head.weight is the embeddings over again, and is left out: models tie them" in report["notes"]
    own = changed(llama, tmp_path / "own", tie_word_embeddings=True)
    assert told(program, capsys, "-i", own, "--format", kind, "-o", tmp_path / "kept")["tensors"] == 21


def test_a_name_that_llama_cpp_would_take_for_phi_3_is_left_out(
    llama: Path, tmp_path: Path, program: Program, capsys: Any
) -> None:
    folder = changed(llama, tmp_path / "my-phi3-clone")
    told(program, capsys, "-i", folder, "-o", tmp_path / "model.gguf")
    assert "general.name" not in GGUFReader(tmp_path / "model.gguf").fields


def test_matrices_that_no_block_divides_are_told_of(tmp_path: Path, program: Program, capsys: Any) -> None:
    folder = exported_model(tmp_path / "model", "llama")
    assert export(program, "-i", folder, "-o", tmp_path / "model.apr", "--quantize", "q4_k_m") == 1
    assert "none of its 16 matrices has rows that blocks of Q4_K divide" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_file_that_is_missing_is_told(
    llama: Path, tmp_path: Path, program: Program, capsys: Any, missing: str
) -> None:
    folder = changed(llama, tmp_path / "model")
    (folder / missing).unlink()
    assert export(program, "-i", folder, "-o", tmp_path / "model.gguf") == 1
    assert "Traceback" not in (said := capsys.readouterr().err)
    assert said.startswith("error: ")
    assert not (tmp_path / "model.gguf").exists()


def test_a_disk_that_is_full_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    """A limit of the system on files stands for the disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    command = [sys.executable, "-m", "entrenar_distill", "export", "-i", str(llama), "-o", str(tmp_path / "model.gguf")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=limit,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 1
    assert "cannot be written: File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_process_that_is_told_to_end_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """While it quantises 30 million weights."""
    pytest.importorskip("xllamacpp")
    source, target = exported_model(tmp_path / "model", "llama", vocab_size=60_000, hidden_size=256), tmp_path / "out"
    command = [sys.executable, "-m", "entrenar_distill", "export", "-i", str(source), "-o", str(target / "model.gguf")]
    target.mkdir()
    process = subprocess.Popen([*command, "--quantize", "q4_k_m"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(target.iterdir()):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait(timeout=60) != 0
    assert list(target.iterdir()) == []


def test_a_run_that_has_not_ended_names_its_checkpoint(
    llama: Path, tmp_path: Path, program: Program, capsys: Any
) -> None:
    folder = changed(llama, tmp_path / "out")
    (folder / "run.json").write_text(json.dumps({"status": "interrupted"}))
    checkpoint = folder / "checkpoints" / "step-00000012"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    assert export(program, "-i", folder, "-o", tmp_path / "model.gguf") == 2
    assert f"name a checkpoint: {checkpoint}" in capsys.readouterr().err


def test_without_the_extra_a_k_quant_is_refused_by_name(llama: Path, tmp_path: Path) -> None:
    """In a process that cannot find the package."""
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'xllamacpp' else find(name, *a)\n"
        "from entrenar_distill.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    said = {}
    for kind, status in (("q4_k_m", 2), ("q4_0", 0)):
        flags = ["export", "-i", str(llama), "-o", str(tmp_path / f"{kind}.gguf"), "--quantize", kind]
        done = subprocess.run([sys.executable, "-c", code, *flags], capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        said[kind] = done.stdout + done.stderr
    assert "pip install 'entrenar[xllamacpp]'" in said["q4_k_m"]
    assert "without ggml's own routine 1 of its tensors are Q8_0" in said["q4_0"]
    assert [path.name for path in tmp_path.iterdir()] == ["q4_0.gguf"]
    assert types_of(tmp_path / "q4_0.gguf")["output.weight"] == "Q8_0"
