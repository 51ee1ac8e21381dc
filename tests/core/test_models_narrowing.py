"""Narrower students in every family: what goes missing is what was meant to, and all matrices agree on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from entrenar_core.architectures import architecture_of, families
from entrenar_core.architectures.flows import Axis
from entrenar_core.artifact import ModelArtifact, inspect_folder
from entrenar_core.config.schema import InitFrom, StudentConfig
from entrenar_core.errors import ConfigError, ModelError
from entrenar_core.models.cuts import Cut, Selection, each_times
from entrenar_core.models.importance import Sample
from entrenar_core.models.loading import load_model
from entrenar_core.models.matrices import head_dim_of, matrices_of
from entrenar_core.models.narrowing import Narrowed, cut_through, narrow
from entrenar_core.models.student import build_student
from entrenar_core.models.widths import Widths, student_widths, widths_of

CAUSAL, CLASSES, MASKED, TAGS = "causal-lm", "sequence-classification", "masked-lm", "token-classification"
AUTO = {
    CAUSAL: AutoModelForCausalLM,
    CLASSES: AutoModelForSequenceClassification,
    MASKED: AutoModelForMaskedLM,
    TAGS: AutoModelForTokenClassification,
}
HEADS = {"CausalLM": CAUSAL, "LMHeadModel": CAUSAL, "MaskedLM": MASKED, "ForTokenClassification": TAGS}
CUTTABLE = [name for name, family in families().items() if family.flows]
TURNABLE = [name for name in CUTTABLE if families()[name].flows.feeds]  # type: ignore[union-attr]
WIDE_HEADS = [name for name in TURNABLE if families()[name].head_dim]  # the stream alone can be narrower
DECODERS = [name for name in CUTTABLE if families()[name].kind == "decoder"]
WITH_HEADS = [(name, CAUSAL) for name in DECODERS] + [
    (name, task) for name in CUTTABLE if name not in DECODERS for task in (CLASSES, MASKED, TAGS)
]
GROUPED = [name for name in CUTTABLE if families()[name].keys["num_kv_heads"] != families()[name].keys["num_heads"]]
IDS = torch.randint(3, 120, (3, 9), generator=torch.Generator().manual_seed(1))
SAMPLE = [(IDS, torch.ones_like(IDS))]
HEAD_DIM = 6


def teacher_of(name: str, *, task: str | None = None, layers: int = 3, **settings: Any) -> PreTrainedModel:
    """A model of a family with random weights, norms and biases: 48 wide, 8 heads of 6, 4 key-value heads."""
    family = families()[name]
    sizes = {"num_layers": layers, "hidden_size": 48, "num_kv_heads": 4, "num_heads": 8, "intermediate_size": 40}
    given = {family.keys[size][0]: value for size, value in (sizes | {"vocab_size": 120}).items()}
    given[family.keys["num_heads"][0]] = 8
    given |= {"head_dim": HEAD_DIM} if family.head_dim else {}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    task = task or (CAUSAL if family.kind == "decoder" else CLASSES)
    config = AutoConfig.for_model(family.model_types[0], **ids | given | settings)
    torch.manual_seed(0)
    model: PreTrainedModel = AUTO[task].from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def saved(model: PreTrainedModel, folder: Path) -> ModelArtifact:
    model.save_pretrained(folder)
    return inspect_folder(folder)


def student_of(teacher: PreTrainedModel, folder: Path, sample: Sample | None = SAMPLE, **init: Any) -> PreTrainedModel:
    artifact = saved(teacher, folder)
    task = next((task for end, task in HEADS.items() if artifact.architecture.classes[0].endswith(end)), CLASSES)
    return build_student(
        StudentConfig(init_from=InitFrom(**init)),
        teacher_artifact=artifact,
        teacher_model=teacher,
        student_artifact=None,
        task=task,
        label_names=None,
        seed=0,
        vocab_size=120,
        sample=sample,
    )


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    output: Tensor = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return output


def put(weights: Narrowed, model: PreTrainedModel) -> PreTrainedModel:
    model.base_model.load_state_dict(weights.body)
    model.load_state_dict(weights.head, strict=False)
    return model


def widths(model: PreTrainedModel) -> Widths:
    found = widths_of(architecture_of(model.config.to_dict()))
    assert found
    return found


def permuted(generator: torch.Generator, number: int) -> Selection:
    return Selection(torch.randperm(number, generator=generator))


@pytest.mark.parametrize(("name", "task"), WITH_HEADS)
def test_the_flows_are_those_of_the_model(name: str, task: str) -> None:
    """Every width put in another order, heads and neurons in another one in each layer: the function is the same."""
    teacher, other = teacher_of(name, task=task), teacher_of(name, task=task)
    before, family = widths(teacher), families()[name]
    modules = matrices_of(teacher, family, before, range(3))
    generator, head = torch.Generator().manual_seed(3), head_dim_of(modules, before)
    assert head == HEAD_DIM
    stream: dict[Axis, Cut] = {"hidden": permuted(generator, 48), "pooled": permuted(generator, 48)}
    stream["predicted"] = stream["hidden"]  # it meets the embeddings
    if task == TAGS:
        stream["pooled"] = stream["hidden"]
    cuts: dict[int | None, Mapping[Axis, Cut]] = {None: stream}
    for layer in range(3):
        groups = permuted(generator, before.num_kv_heads)
        heads = Selection((groups.indices_m[:, None] * before.group + torch.arange(before.group)).flatten())
        keys = each_times(groups, head)
        own: dict[Axis, Cut] = {"queries": each_times(heads, head), "keys": keys, "values": keys}
        cuts[layer] = stream | own | {"neurons": permuted(generator, 40)}
    tied = bool(teacher.config.tie_word_embeddings)
    put(cut_through(modules, cuts, before, before.num_heads, tied=tied), other)
    assert not torch.equal(other.base_model.state_dict()[modules[0].name + ".weight"], modules[0].weight.T)
    torch.testing.assert_close(logits(other), logits(teacher), rtol=1e-4, atol=1e-4)


def test_every_row_of_a_table_of_flows_is_some_models() -> None:
    used: dict[int, set[str]] = {}
    for name in CUTTABLE:
        for task in (CAUSAL, CLASSES) if name in DECODERS else (CLASSES, MASKED, TAGS):
            teacher = teacher_of(name, task=task, layers=1)
            rows = {module.row for module in matrices_of(teacher, families()[name], widths(teacher), [0])}
            used.setdefault(id(families()[name].flows), set()).update(rows)
    for name in CUTTABLE:
        flows = families()[name].flows
        assert flows
        assert set(flows.modules) == used[id(flows)]
        assert {row for readers in flows.feeds.values() for row in readers} | set(flows.feeds) <= set(flows.modules)


@pytest.mark.parametrize("name", CUTTABLE)
def test_the_width_of_a_head_is_told_where_the_row_says(name: str) -> None:
    family = families()[name]
    with_head_dim = hasattr(AutoConfig.for_model(family.model_types[0]), "head_dim")
    assert with_head_dim == family.head_dim


@pytest.mark.parametrize(("name", "task"), WITH_HEADS)
@pytest.mark.parametrize("how", [{"width": "truncate"}, {"width": "interpolate"}, {}, {"importance": "magnitude"}])
def test_a_narrower_student_of_any_family_is_built_saved_and_loaded(
    name: str, task: str, how: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {"hidden_size": 24, "num_heads": 4, "intermediate_size": 17} | (
        {"num_kv_heads": 2} if name in GROUPED else {}
    )
    student = student_of(teacher_of(name, task=task), tmp_path / "teacher", teacher_layers=2, **sizes, **how)
    found = architecture_of(student.config.to_dict())
    assert (found.hidden_size, found.num_heads, found.intermediate_size) == (24, 4, 17)
    assert (found.num_layers, found.num_kv_heads) == (2, 2 if name in GROUPED else 4)
    assert logits(student).isfinite().all()
    again = load_model(saved(student, tmp_path / "student"), task)
    assert torch.equal(logits(again), logits(student))


@pytest.mark.parametrize(("name", "task"), WITH_HEADS)
@pytest.mark.parametrize("how", [{"width": "truncate"}, {"width": "interpolate"}, {}, {"embeddings": "svd"}])
def test_the_teachers_own_widths_give_the_teacher(name: str, task: str, how: dict[str, Any], tmp_path: Path) -> None:
    if how == {"embeddings": "svd"} and name not in TURNABLE:
        pytest.skip("refused")
    teacher = teacher_of(name, task=task)
    student = student_of(teacher, tmp_path, hidden_size=48, num_heads=8, intermediate_size=40, **how)
    assert torch.equal(logits(student), logits(teacher))


@pytest.mark.parametrize("name", CUTTABLE)
@pytest.mark.parametrize("importance", ["magnitude", "activation"])
def test_neurons_and_heads_that_say_nothing_are_those_that_go(name: str, importance: str, tmp_path: Path) -> None:
    teacher = teacher_of(name)
    before = widths(teacher)
    for module in matrices_of(teacher, families()[name], before, range(3)):
        axes = module.flow.reads.parts
        if axes not in (("neurons",), ("queries",)):
            continue
        silent = torch.arange(17, 40) if axes == ("neurons",) else torch.arange(2 * HEAD_DIM * 8 // before.num_kv_heads)
        weight = teacher.base_model.get_submodule(module.name).weight.data
        (weight if module.is_turned else weight.T)[silent] = 0
    heads = {"num_heads": 6 if name in GROUPED else None, "num_kv_heads": 3 if name in GROUPED else None}
    if not families()[name].head_dim:
        heads = {}  # fewer heads would make the stream narrower too
    student = student_of(teacher, tmp_path, intermediate_size=17, importance=importance, **heads)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-5, atol=1e-5)


def test_silent_heads_go_alone_within_their_groups(tmp_path: Path) -> None:
    teacher = teacher_of("llama")
    for layer in teacher.model.layers:
        layer.self_attn.o_proj.weight.data[:, torch.arange(8 * HEAD_DIM) // HEAD_DIM % 2 == 0] = 0
    student = student_of(teacher, tmp_path, num_heads=4, num_kv_heads=4)
    assert torch.equal(student.model.layers[0].self_attn.k_proj.weight, teacher.model.layers[0].self_attn.k_proj.weight)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "llama", "mistral", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_numbers_of_the_stream_that_are_never_written_are_those_that_go(name: str, tied: bool, tmp_path: Path) -> None:
    """With a third of the stream at zero, the teacher's norms are larger by the root of 3/2: then all is the same."""
    teacher = teacher_of(name, tie_word_embeddings=tied)
    silent = torch.arange(48) % 3 == 1
    norms = {}
    for module in matrices_of(teacher, families()[name], widths(teacher), range(3)):
        tensor = teacher.base_model.get_submodule(module.name) if not module.in_head else None
        if tensor is None or module.flow.writes.parts != ("hidden",):
            continue
        if module.flow.is_norm:
            norms[module.name] = tensor
        else:
            (tensor.weight.data.T if module.is_turned else tensor.weight.data)[silent] = 0
    student = student_of(teacher, tmp_path, hidden_size=32, width="importance")
    offset = 1.0 if name.startswith("gemma") else 0.0
    for full in norms:
        gain = student.base_model.get_submodule(full).weight.data
        # the student's norm divides by the mean over 32 numbers and the teacher's over 48
        gain.copy_((gain + offset) * (48 / 32) ** 0.5 - offset)
    torch.testing.assert_close(logits(student), logits(teacher), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", WIDE_HEADS)
@pytest.mark.parametrize("importance", ["magnitude", "activation"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_stream_of_few_directions_is_turned_into_them_without_loss(
    name: str, importance: str, tied: bool, tmp_path: Path
) -> None:
    teacher = teacher_of(name, tie_word_embeddings=tied)
    generator = torch.Generator().manual_seed(9)
    basis = torch.linalg.qr(torch.randn(48, 40, generator=generator, dtype=torch.float64)).Q
    onto = (basis @ basis.T).float()
    for module in matrices_of(teacher, families()[name], widths(teacher), range(3)):
        if module.flow.writes.parts == ("hidden",) and not module.flow.is_norm:
            weight = teacher.base_model.get_submodule(module.name).weight.data
            weight.copy_(weight @ onto if module.is_turned else onto @ weight)
    student = student_of(teacher, tmp_path, hidden_size=40, embeddings="svd", importance=importance)
    assert student.config.tie_word_embeddings is False
    torch.testing.assert_close(logits(student), logits(teacher), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", TURNABLE)
@pytest.mark.parametrize("tied", [True, False])
def test_a_turned_student_is_closer_than_one_of_random_directions(name: str, tied: bool, tmp_path: Path) -> None:
    """Where directions are missing something is lost, and less than by taking the first numbers."""
    teacher = teacher_of(name, tie_word_embeddings=tied)
    wanted = {"hidden_size": 42, "num_heads": 7, "num_kv_heads": 7} if name not in GROUPED else {"hidden_size": 40}
    wanted = wanted if families()[name].head_dim else {"hidden_size": 36, "num_kv_heads": 3}
    student = student_of(teacher, tmp_path, embeddings="svd", importance="activation", **wanted)
    sliced = student_of(teacher, tmp_path / "sliced", width="truncate", **wanted)
    losses = [(logits(model) - logits(teacher)).square().mean() for model in (student, sliced)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("width", ["truncate", "interpolate"])
@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_tied_predictions_stay_the_embeddings(name: str, width: str, tmp_path: Path) -> None:
    teacher = teacher_of(name, task=MASKED)
    student = student_of(teacher, tmp_path, hidden_size=24, num_heads=4, width=width)
    words, theirs = (model.get_input_embeddings().weight for model in (student, teacher))
    assert student.get_output_embeddings().weight is words
    stretched = torch.nn.functional.interpolate(theirs.unsqueeze(1), 24, mode="linear", align_corners=True).squeeze(1)
    expected = theirs[:, :24] if width == "truncate" else stretched
    torch.testing.assert_close(words, expected, rtol=1e-5, atol=1e-6)
    biases = [model.get_output_embeddings().bias for model in (student, teacher)]
    assert torch.equal(biases[0], biases[1])


def test_truncated_parts_of_fused_matrices_are_the_parts_of_the_teacher(tmp_path: Path) -> None:
    sizes = {"hidden_size": 24, "num_heads": 4, "width": "truncate"}
    gpt2, neox = teacher_of("gpt2"), teacher_of("gpt_neox")
    theirs = gpt2.transformer.h[1].attn.c_attn
    own = student_of(gpt2, tmp_path / "a", **sizes).transformer.h[1].attn.c_attn
    for part in range(3):
        rows = slice(24 * part, 24 * part + 24)
        old = slice(48 * part, 48 * part + 24)
        assert torch.equal(own.weight[:, rows], theirs.weight[:24, old])
        assert torch.equal(own.bias[rows], theirs.bias[old])
    theirs = neox.gpt_neox.layers[1].attention.query_key_value
    own = student_of(neox, tmp_path / "b", **sizes).gpt_neox.layers[1].attention.query_key_value
    assert torch.equal(own.weight, theirs.weight[: 4 * 3 * HEAD_DIM, :24])
    assert torch.equal(own.bias, theirs.bias[: 4 * 3 * HEAD_DIM])
    phi3 = teacher_of("phi3")
    theirs = phi3.model.layers[0].self_attn.qkv_proj.weight
    own = student_of(phi3, tmp_path / "c", **sizes).model.layers[0].self_attn.qkv_proj.weight
    expected = torch.cat([theirs[:24], theirs[48 : 48 + 12], theirs[72 : 72 + 12]])[:, :24]
    assert torch.equal(own, expected)
    gate_up = phi3.model.layers[0].mlp.gate_up_proj.weight
    own = (
        student_of(phi3, tmp_path / "d", intermediate_size=10, width="truncate").model.layers[0].mlp.gate_up_proj.weight
    )
    assert torch.equal(own, torch.cat([gate_up[:10], gate_up[40:50]]))


def test_the_neurons_that_stay_are_those_that_add_most_on_the_sample(tmp_path: Path) -> None:
    teacher = teacher_of("llama")
    seen: list[Any] = []
    down = teacher.model.layers[1].mlp.down_proj
    handle = down.register_forward_hook(lambda _, given, __: seen.append(given[0].detach().double().numpy()))
    logits(teacher)
    handle.remove()
    columns = (down.weight.detach().double().numpy() ** 2).sum(0)
    scores = [np.mean(seen[0][:, :, neuron] ** 2) * columns[neuron] for neuron in range(40)]
    expected = sorted(sorted(range(40), key=lambda neuron: -scores[neuron])[:11])
    student = student_of(teacher, tmp_path, intermediate_size=11, importance="activation")
    assert torch.equal(student.model.layers[1].mlp.down_proj.weight, down.weight[:, expected])
    assert torch.equal(student.model.layers[1].mlp.up_proj.weight, teacher.model.layers[1].mlp.up_proj.weight[expected])


def test_the_heads_that_stay_are_those_that_add_most_by_their_weights(tmp_path: Path) -> None:
    teacher = teacher_of("llama")
    attention = teacher.model.layers[2].self_attn
    o, v = (module.weight.detach().double().numpy() for module in (attention.o_proj, attention.v_proj))
    score = {
        head: sum(
            (o[:, head * HEAD_DIM + i] ** 2).sum() * (v[head // 2 * HEAD_DIM + i] ** 2).sum() for i in range(HEAD_DIM)
        )
        for head in range(8)
    }
    best = {group: max((2 * group, 2 * group + 1), key=score.__getitem__) for group in range(4)}
    groups = sorted(sorted(best, key=lambda group: -score[best[group]])[:2])
    rows = [best[group] * HEAD_DIM + i for group in groups for i in range(HEAD_DIM)]
    student = student_of(teacher, tmp_path, num_heads=2, num_kv_heads=2, importance="magnitude")
    assert torch.equal(student.model.layers[2].self_attn.q_proj.weight, attention.q_proj.weight[rows])
    assert torch.equal(student.model.layers[2].self_attn.o_proj.weight, attention.o_proj.weight[:, rows])


def test_magnitude_does_not_see_a_scale_that_the_function_does_not_see(tmp_path: Path) -> None:
    teacher = teacher_of("llama")
    one = student_of(teacher, tmp_path / "a", None, intermediate_size=13, num_heads=4, importance="magnitude")
    scale = torch.logspace(-2, 2, 40)
    for layer in teacher.model.layers:
        layer.mlp.up_proj.weight.data.mul_(scale[:, None])
        layer.mlp.down_proj.weight.data.div_(scale)
        layer.self_attn.v_proj.weight.data.mul_(7)
        layer.self_attn.o_proj.weight.data.div_(7)
    other = student_of(teacher, tmp_path / "b", None, intermediate_size=13, num_heads=4, importance="magnitude")
    torch.testing.assert_close(logits(one), logits(other), rtol=1e-4, atol=1e-4)


def test_padding_of_the_sample_is_not_measured(tmp_path: Path) -> None:
    teacher = teacher_of("llama")
    padded = torch.cat([IDS, torch.full((3, 4), 7)], 1)
    mask = torch.cat([torch.ones_like(IDS), torch.zeros(3, 4, dtype=torch.long)], 1)
    init = {"hidden_size": 28, "num_heads": 4, "intermediate_size": 21, "importance": "activation"}
    one = student_of(teacher, tmp_path / "a", **init)
    other = student_of(teacher, tmp_path / "b", [(padded, mask)], **init)
    assert torch.equal(logits(one), logits(other))
    parts = [(IDS[:1], torch.ones_like(IDS[:1])), (IDS[1:], torch.ones_like(IDS[1:]))]
    assert torch.equal(logits(student_of(teacher, tmp_path / "c", parts, **init)), logits(one))
    with pytest.raises(ValueError, match="no token"):
        student_of(teacher, tmp_path / "d", [(padded, torch.zeros_like(padded))], **init)


def test_measuring_leaves_the_teacher_as_it_was(tmp_path: Path) -> None:
    teacher = teacher_of("bert").train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student_of(teacher, tmp_path, intermediate_size=9, importance="activation")
    assert teacher.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(module._forward_pre_hooks for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_activation_without_texts_is_a_mistake_of_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        student_of(teacher_of("llama"), tmp_path, None, intermediate_size=9, importance="activation")
    assert raised.value.problems[0].where == "student.init_from.importance"
    student_of(teacher_of("llama"), tmp_path / "truncated", None, intermediate_size=9, width="truncate")


def test_a_tensor_that_no_table_knows_is_refused_by_name() -> None:
    teacher = teacher_of("llama")
    teacher.model.layers[0].adapter = torch.nn.Linear(2, 2)
    family, before = families()["llama"], widths(teacher)
    init = InitFrom(intermediate_size=9)
    with pytest.raises(ModelError, match=r"layers\.0\.adapter\.weight"):
        narrow(teacher, family, init, (before, student_widths(init, family, before)), range(3))


def test_layers_that_are_left_out_do_not_count(tmp_path: Path) -> None:
    """A layer that is not copied may not move the choice of the stream's numbers."""
    teacher = teacher_of("llama")
    init = {"teacher_layers": [0, 2], "hidden_size": 32, "importance": "magnitude"}
    one = student_of(teacher, tmp_path / "a", **init)
    for parameter in teacher.model.layers[1].parameters():
        parameter.data.mul_(torch.logspace(-3, 3, parameter.shape[0]).reshape(-1, *[1] * (parameter.ndim - 1)))
    assert torch.equal(logits(student_of(teacher, tmp_path / "b", **init)), logits(one))


def test_a_student_in_half_precision_is_cut_from_the_same_numbers(tmp_path: Path) -> None:
    teacher = teacher_of("llama").to(torch.bfloat16)
    student = student_of(teacher, tmp_path, intermediate_size=9, hidden_size=24)
    assert student.dtype == torch.float32
    kept = student.model.layers[0].mlp.up_proj.weight
    theirs = teacher.model.layers[0].mlp.up_proj.weight.float()
    assert all(any(set(row.tolist()) <= set(old.tolist()) for old in theirs) for row in kept)
