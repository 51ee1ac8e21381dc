"""Students by reference, by sizes in every family, and from layers of the teacher, whose weights keep their bits."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from entrenar_core.architectures import Architecture, architecture_of, families
from entrenar_core.artifact import ModelArtifact, inspect_folder
from entrenar_core.config.schema import StudentConfig
from entrenar_core.errors import ConfigError, ModelError
from entrenar_core.models.dropout import set_dropout
from entrenar_core.models.facts import parameter_count
from entrenar_core.models.loading import load_model
from entrenar_core.models.student import build_student
from entrenar_core.models.student_rules import check_student, evenly_spaced
from tiny_models import tiny_bert, tiny_llama

CAUSAL, CLASSES = "causal-lm", "sequence-classification"
IDS = torch.tensor([[5, 9, 100, 7, 11, 12], [8, 3, 3, 90, 1, 4]])
DECODERS = [name for name, family in families().items() if family.kind == "decoder"]
ENCODERS = [name for name, family in families().items() if family.kind == "encoder"]
TINY = {"hidden_size": 32, "num_layers": 3, "num_heads": 4}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelArtifact]:
    """A saved model of any family with random weights, built from its row of the table."""

    def make(name: str, task: str, layers: int = 5, **settings: Any) -> ModelArtifact:
        family = families()[name]
        sizes = {"num_layers": layers, "hidden_size": 32, "num_kv_heads": 2, "num_heads": 4, "intermediate_size": 48}
        given = {family.keys[size][0]: value for size, value in (sizes | {"vocab_size": 120}).items()}
        given[family.keys["num_heads"][0]] = 4
        own = AutoConfig.for_model(family.model_types[0])
        few = {"num_experts": 3, "num_local_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        given |= {key: value for key, value in (few | {"head_dim": 8}).items() if hasattr(own, key)}
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = AutoConfig.for_model(family.model_types[0], **ids | given | settings)
        auto = AutoModelForCausalLM if task == CAUSAL else AutoModelForSequenceClassification
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        auto.from_config(config).save_pretrained(folder)
        return inspect_folder(folder)

    return make


def build(settings: dict[str, Any], teacher: ModelArtifact, task: str = CAUSAL, **options: Any) -> PreTrainedModel:
    defaults: dict[str, Any] = {"teacher_model": None, "student_artifact": None, "label_names": None}
    defaults |= {"seed": 0, "vocab_size": 120}
    return build_student(StudentConfig(**settings), teacher_artifact=teacher, task=task, **defaults | options)


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@given(total=st.integers(1, 200), data=st.data())
def test_even_spacing_takes_first_and_last_and_steps_evenly(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    layers = evenly_spaced(count, total)
    steps = [after - before for before, after in pairwise(layers)]
    assert len(layers) == count
    assert layers[0] == 0
    assert count == 1 or layers[-1] == total - 1
    assert not steps or (min(steps) >= 1 and max(steps) - min(steps) <= 1)


def test_six_of_thirty_layers_are_the_documented_ones() -> None:
    assert evenly_spaced(6, 30) == (0, 6, 12, 18, 24, 29)
    for count in (0, 31):
        with pytest.raises(ValueError):
            evenly_spaced(count, 30)


@pytest.mark.parametrize("name", DECODERS + ENCODERS)
@pytest.mark.parametrize("wanted", [[1, 2, 4], 3])
def test_copied_layers_have_the_bits_of_the_teachers(make: Any, name: str, wanted: Any, tmp_path: Path) -> None:
    task = CAUSAL if name in DECODERS else CLASSES
    artifact = make(name, task)
    teacher = load_model(artifact, task)
    student = build({"init_from": {"teacher_layers": wanted}}, artifact, task, teacher_model=teacher)
    chosen = [1, 2, 4] if wanted != 3 else [0, 2, 4]
    path = families()[name].layers
    ours, theirs = (model.base_model.get_submodule(path) for model in (student, teacher))
    assert len(ours) == 3 == architecture_of(student.config.to_dict()).num_layers
    assert all(same_bits(layer, theirs[index]) for layer, index in zip(ours, chosen, strict=True))
    rest = {key: tensor for key, tensor in teacher.state_dict().items() if f"{path}." not in key}
    assert all(torch.equal(student.state_dict()[key], tensor) for key, tensor in rest.items())
    per_layer = {key: value for key, value in teacher.config.to_dict().items() if key == "layer_types" and value}
    assert all(student.config.to_dict()[key] == [types[i] for i in chosen] for key, types in per_layer.items())
    if task == CAUSAL:
        whole = student.generate(
            IDS[:1], attention_mask=IDS[:1] > 0, max_new_tokens=5, do_sample=False, use_cache=False
        )
        cached = student.generate(
            IDS[:1], attention_mask=IDS[:1] > 0, max_new_tokens=5, do_sample=False, use_cache=True
        )
        assert torch.equal(whole, cached)
    student.save_pretrained(tmp_path)
    assert same_bits(load_model(inspect_folder(tmp_path), task), student)
    assert str(artifact.path) not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
def test_all_layers_of_the_teacher_are_the_teacher(make: Any, name: str) -> None:
    artifact = make(name, CAUSAL)
    student = build({"init_from": {"teacher_layers": 5}}, artifact)
    assert torch.equal(student(input_ids=IDS).logits, load_model(artifact, CAUSAL)(input_ids=IDS).logits)


@pytest.mark.parametrize(("where", "chosen"), [("uniform", [0, 4]), ("first", [0, 1]), ("last", [3, 4])])
def test_a_number_of_layers_may_be_the_first_or_the_last(make: Any, where: str, chosen: list[int]) -> None:
    artifact = make("llama", CAUSAL)
    teacher = load_model(artifact, CAUSAL)
    student = build({"init_from": {"teacher_layers": 2, "layers_from": where}}, artifact, teacher_model=teacher)
    assert all(
        same_bits(layer, teacher.model.layers[index]) for layer, index in zip(student.model.layers, chosen, strict=True)
    )


def test_layers_come_from_the_teacher_in_memory_when_there_is_one(make: Any) -> None:
    artifact = make("llama", CAUSAL)
    teacher = load_model(artifact, CAUSAL, dtype="bfloat16")
    with torch.no_grad():
        teacher.model.layers[4].mlp.up_proj.weight.fill_(0.5)
    student = build({"init_from": {"teacher_layers": [4]}}, artifact, teacher_model=teacher)
    assert student.dtype == torch.float32
    assert student.model.layers[0].mlp.up_proj.weight.eq(0.5).all()
    student.model.norm.weight.data.fill_(7)
    assert not teacher.model.norm.weight.eq(7).any()


def test_a_list_of_end_of_text_ids_is_not_a_list_of_layers(make: Any) -> None:
    artifact = make("llama", CAUSAL, layers=2, eos_token_id=[2, 3])
    assert build({"init_from": {"teacher_layers": [1]}}, artifact).config.eos_token_id == [2, 3]


def test_layers_of_a_headless_encoder_become_a_classifier(tmp_path: Path) -> None:
    artifact = inspect_folder(tiny_bert(tmp_path / "bert"))
    teacher = load_model(artifact, CLASSES, seed=5)
    for given_teacher in (teacher, teacher.base_model, None):
        student = build(
            {"init_from": {"teacher_layers": [1]}},
            artifact,
            CLASSES,
            teacher_model=given_teacher,
            label_names=list("abc"),
        )
        assert student.config.id2label == {0: "a", 1: "b", 2: "c"}
        assert same_bits(student.bert.encoder.layer[0], teacher.bert.encoder.layer[1])
        assert student(input_ids=IDS[:, :3], attention_mask=IDS[:, :3] > 0).logits.shape == (2, 3)


def test_a_head_is_copied_only_where_it_names_the_same_classes(make: Any) -> None:
    artifact = make("bert", CLASSES, num_labels=3)
    teacher = load_model(artifact, CLASSES, label_names=["a", "b", "c"])
    for names, kept in ((["a", "b", "c"], True), (["c", "b", "a"], False), (["a", "b"], False)):
        student = build(
            {"init_from": {"teacher_layers": [0]}}, artifact, CLASSES, teacher_model=teacher, label_names=names
        )
        assert same_bits(student.classifier, teacher.classifier) is kept


@pytest.mark.parametrize(
    ("name", "task"), [(n, CAUSAL) for n in DECODERS] + [(n, CLASSES) for n in DECODERS + ENCODERS]
)
def test_sizes_build_any_family(make: Any, name: str, task: str, tmp_path: Path) -> None:
    teacher = make("llama" if task == CAUSAL else "bert", task)
    settings = TINY | {"architecture": name, "intermediate_size": 40}
    names = ["a", "b", "c"] if task == CLASSES else None
    student, same, other = (build(settings, teacher, task, seed=seed, label_names=names) for seed in (1, 1, 2))
    assert same_bits(student, same)
    assert not same_bits(student, other)
    found = architecture_of(student.config.to_dict())
    assert (found.family, found.num_layers, found.hidden_size, found.num_heads) == (name, 3, 32, 4)
    assert (found.num_kv_heads, found.intermediate_size, found.vocab_size) == (4, 40, 120)
    special = (student.config.pad_token_id, student.config.bos_token_id, student.config.eos_token_id)
    assert special == (0, 1, 2)
    logits = student(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    assert logits.shape == ((2, 6, 120) if task == CAUSAL else (2, 3))
    student.save_pretrained(tmp_path)
    assert same_bits(load_model(inspect_folder(tmp_path), task), student)


@pytest.mark.parametrize("architecture", [None, "transformer", "llama"])
def test_what_sizes_leave_open_is_the_teachers(make: Any, architecture: str | None) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    settings = {
        "rope_parameters": rope,
        "max_position_embeddings": 77,
        "tie_word_embeddings": True,
        "rms_norm_eps": 0.01,
    }
    student = build(TINY | {"architecture": architecture}, make("llama", CAUSAL, **settings), vocab_size=111)
    config = student.config
    assert config.rope_parameters == rope
    assert (config.max_position_embeddings, config.tie_word_embeddings, config.rms_norm_eps) == (77, True, 0.01)
    assert (config.vocab_size, config.intermediate_size, config.num_key_value_heads, config.head_dim) == (
        111,
        128,
        4,
        8,
    )


def test_grouped_heads_are_as_many_as_given(make: Any) -> None:
    student = build(TINY | {"num_kv_heads": 2}, make("llama", CAUSAL))
    assert student.model.layers[0].self_attn.k_proj.weight.shape == (16, 32)


def test_another_depth_is_not_held_to_the_teachers_list_of_layer_types(make: Any) -> None:
    student = build(TINY, make("gemma3", CAUSAL))
    assert len(student.config.layer_types) == 3


def test_a_roberta_has_room_for_as_many_tokens_as_its_teacher(make: Any) -> None:
    teacher = make("bert", CLASSES, max_position_embeddings=20)
    student = build(TINY | {"architecture": "roberta"}, teacher, CLASSES, label_names=["a", "b"])
    ids = torch.full((1, 20), 5)
    assert student(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.isfinite().all()


def test_a_pad_token_is_taken_from_the_tokenizer_where_the_teacher_has_none(make: Any) -> None:
    teacher = make("gpt2", CLASSES, pad_token_id=None)
    for settings in (TINY, {"init_from": {"teacher_layers": 1}}):
        student = build(settings, teacher, CLASSES, label_names=["a", "b"], pad_token_id=3)
        assert student.config.pad_token_id == 3
        assert student(input_ids=IDS).logits.shape == (2, 2)


def test_a_referenced_student_is_loaded(make: Any) -> None:
    teacher, other = make("llama", CAUSAL), make("gpt2", CAUSAL, layers=2)
    student = build({"model_id": "org/student"}, teacher, student_artifact=other)
    assert same_bits(student, load_model(other, CAUSAL))


def test_a_referenced_student_runs_its_code_only_when_trusted(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "own")
    (folder / "student_code.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class C(LlamaConfig):\n    model_type = 'entrenar_student'\n"
        "class M(LlamaForCausalLM):\n    config_class = C\n"
    )
    code = {"AutoConfig": "student_code.C", "AutoModelForCausalLM": "student_code.M"}
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "entrenar_student", "auto_map": code}
    (folder / "config.json").write_text(json.dumps(config))
    artifact = inspect_folder(folder)
    with pytest.raises(ModelError, match="custom code"):
        build({"model_id": "x"}, artifact, student_artifact=artifact)
    student = build({"model_id": "x", "trust_remote_code": True}, artifact, student_artifact=artifact)
    assert type(student).__name__ == "M"


@pytest.mark.parametrize("name", DECODERS + ENCODERS)
def test_dropout_reaches_every_module_and_the_saved_config(make: Any, name: str, tmp_path: Path) -> None:
    task = CAUSAL if name in DECODERS else CLASSES
    model = load_model(make(name, task, layers=2), task).train()
    mask = torch.ones_like(IDS)

    def logits() -> torch.Tensor:
        output: torch.Tensor = model(input_ids=IDS, attention_mask=mask).logits
        return output

    set_dropout(model, 0.0)
    assert torch.equal(logits(), logits())
    set_dropout(model, 0.5)
    assert not torch.equal(logits(), logits())
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} <= {0.5}
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    probabilities = {key: value for key, value in saved.items() if "dropout" in key or "pdrop" in key}
    assert probabilities
    assert set(probabilities.values()) == {0.5}


@pytest.mark.parametrize("way", ["reference", "sizes", "layers"])
def test_the_dropout_setting_changes_the_student_and_none_keeps_its_own(make: Any, way: str) -> None:
    teacher = make("bert", CLASSES, hidden_dropout_prob=0.2)
    settings: dict[str, Any] = {
        "reference": {"model_id": "x"},
        "sizes": TINY,
        "layers": {"init_from": {"teacher_layers": 2}},
    }[way]
    own, set_ = (
        build(settings | extra, teacher, CLASSES, student_artifact=teacher) for extra in ({}, {"dropout": 0.7})
    )
    assert (own.config.hidden_dropout_prob, own.bert.embeddings.dropout.p) == (0.2, 0.2)
    assert (set_.config.hidden_dropout_prob, set_.bert.embeddings.dropout.p, set_.dropout.p) == (0.7, 0.7, 0.7)


LLAMA = Architecture("llama", "llama", num_layers=4, hidden_size=32, num_heads=4)
BERT = Architecture("bert", "bert", num_layers=4)
UNKNOWN = Architecture(None, "newcomer", num_layers=4)
WIDE = Architecture("llama", "llama", (), 4, 48, 8, 4, 40)
GPT2 = Architecture("gpt2", "gpt2", (), 4, 48, 8, 8, 40)
T5 = Architecture("t5", "t5", num_layers=4)


@pytest.mark.parametrize(
    ("settings", "teacher", "where", "says"),
    [
        ({"init_from": {"teacher_layers": [0, 4, 9]}}, LLAMA, "student.init_from.teacher_layers", "no layer 4, 9"),
        ({"init_from": {"teacher_layers": 5}}, LLAMA, "student.init_from.teacher_layers", "teacher has 4"),
        ({"init_from": {"teacher_layers": 2}}, UNKNOWN, "student.init_from.teacher_layers", "newcomer"),
        (
            {"init_from": {"teacher_layers": 2}},
            Architecture("llama", "llama"),
            "student.init_from.teacher_layers",
            "how many",
        ),
        ({"init_from": {"teacher_layers": 2}}, T5, "student.init_from.teacher_layers", "an encoder and a decoder"),
        ({"init_from": {"teacher_layers": 2}}, BERT, "student.init_from.teacher_layers", "from both sides"),
        (TINY, UNKNOWN, "student.architecture", "newcomer"),
        (TINY | {"architecture": "lama"}, LLAMA, "student.architecture", "`lama` is not a model family"),
        (TINY | {"architecture": "bert"}, LLAMA, "student.architecture", "from both sides"),
        (TINY | {"num_heads": 5}, LLAMA, "student.num_heads", "not a multiple"),
        (TINY | {"hidden_size": 12}, LLAMA, "student.num_heads", "pairs"),
        (TINY | {"num_kv_heads": 3}, LLAMA, "student.num_kv_heads", "not a multiple"),
        (TINY | {"architecture": "gpt2", "num_kv_heads": 2}, LLAMA, "student.num_kv_heads", "its own keys"),
        ({"hidden_size": 32, "num_heads": 4}, LLAMA, "student.num_layers", "needs"),
        ({"init_from": {"hidden_size": 64}}, WIDE, "student.init_from.hidden_size", "more than the teacher's 48"),
        ({"init_from": {"hidden_size": 20}}, WIDE, "student.init_from.hidden_size", "not a multiple of the 8 heads"),
        ({"init_from": {"num_heads": 3}}, WIDE, "student.init_from.num_heads", "cannot share 1"),
        ({"init_from": {"num_kv_heads": 2}}, WIDE, "student.init_from.num_kv_heads", "at most 2 share one"),
        ({"init_from": {"hidden_size": 20}}, GPT2, "student.init_from.hidden_size", "3 heads of 6 numbers"),
        ({"init_from": {"num_heads": 4, "num_kv_heads": 2}}, GPT2, "student.init_from.num_kv_heads", "its own keys"),
        (
            {"init_from": {"hidden_size": 24, "embeddings": "svd"}},
            GPT2,
            "student.init_from.embeddings",
            "norms of gpt2",
        ),
        ({"init_from": {"hidden_size": 24}}, LLAMA, "student.init_from.hidden_size", "how wide"),
    ],
)
def test_a_mistake_is_found_before_anything_is_loaded(
    settings: dict[str, Any], teacher: Architecture, where: str, says: str
) -> None:
    (problem,) = check_student(StudentConfig(**settings), teacher, task=CAUSAL)
    assert problem.where == where
    assert says in problem.message


def test_a_family_without_flows_is_not_narrowed() -> None:
    electra = Architecture("electra", "electra", (), 4, 48, 8, 8, 40)
    (problem,) = check_student(StudentConfig(init_from={"hidden_size": 24}), electra)  # type: ignore[arg-type]
    assert "electra" in problem.message
    assert problem.where == "student.init_from.hidden_size"
    assert check_student(StudentConfig(init_from={"teacher_layers": 2}), electra) == []  # type: ignore[arg-type]


def test_a_misspelt_family_gets_a_suggestion() -> None:
    (problem,) = check_student(StudentConfig(**TINY, architecture="lama"), LLAMA)
    assert problem.hint == "did you mean `llama`?"
    (problem,) = check_student(StudentConfig(**TINY, architecture="zzz"), LLAMA)
    assert "qwen2" in str(problem.hint)


def test_sound_students_have_no_problem() -> None:
    for settings in (TINY, TINY | {"num_kv_heads": 2}, {"init_from": {"teacher_layers": (3, 0)}}, {"model_id": "x"}):
        assert check_student(StudentConfig(**settings), LLAMA, task=CAUSAL) == []
    assert check_student(StudentConfig(model_id="x"), UNKNOWN) == []


def test_a_layer_that_the_teacher_lacks_is_a_config_error_of_that_setting(make: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        build({"init_from": {"teacher_layers": [0, 5]}}, make("llama", CAUSAL))
    (problem,) = raised.value.problems
    assert problem.where == "student.init_from.teacher_layers"
    assert problem.hint == "its layers are 0 to 4"


def test_the_rules_need_no_torch() -> None:
    code = (
        "import sys, entrenar_core.models.student_rules, entrenar_core.models.heads\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_tied_weight_counts_once(make: Any) -> None:
    tied, untied = (load_model(make("llama", CAUSAL, tie_word_embeddings=tied), CAUSAL) for tied in (True, False))
    assert parameter_count(untied) - parameter_count(tied) == 120 * 32
