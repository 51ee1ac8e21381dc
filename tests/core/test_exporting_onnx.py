"""An exported graph gives what transformers gives, for rows and tokens that were not traced, and says what it is."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
import transformers
from torch.nn import functional

from entrenar_core.artifact import inspect_folder
from entrenar_core.errors import EntrenarError, ModelError, OutputError, UsageError
from entrenar_core.exporting.onnx import OnnxExport, export_onnx, requirements
from entrenar_core.exporting.onnx.callers import pooled_whole
from entrenar_core.exporting.onnx.checking import LIMIT
from entrenar_core.exporting.onnx.files import save
from entrenar_core.formats.onnx import external_files
from entrenar_core.losses.pooling import Pool, pooled
from entrenar_core.models.calling import called
from entrenar_core.models.onnx_model import load_onnx
from entrenar_core.models.onnx_rules import check_graph
from entrenar_core.models.sentence_files import sentence_files
from tiny_models import tiny_bert, tiny_llama

SHAPES = ((1, 1), (1, 60), (4, 7), (5, 128))
_NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}


def run(file: Path, given: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """What onnxruntime makes of a graph."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feed = {value.name: given[value.name].numpy() for value in session.get_inputs()}
    return [torch.from_numpy(found) for found in session.run(None, feed)]


def batch(rows: int, tokens: int, vocabulary: int) -> dict[str, torch.Tensor]:
    """Random tokens, padded on the right in one row and on the left in another."""
    ids_BT = torch.randint(5, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(rows * tokens))
    mask_BT = torch.ones_like(ids_BT)
    if rows > 2:
        mask_BT[1, tokens // 3 :] = 0
        mask_BT[2, : tokens // 2] = 0
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "token_type_ids": ids_BT % 2}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OnnxExport]:
    """A folder, and the graph that is put into a copy of it without its weights; the head is tied to the embeddings."""
    folder = tiny_llama(tmp_path_factory.mktemp("models") / "llama", initializer_range=0.3, num_hidden_layers=1)
    target = folder.with_name("onnx")
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder, export_onnx(inspect_folder(folder), target)


def test_a_graph_gives_what_transformers_gives_in_batches_that_were_not_traced(llama: tuple[Path, OnnxExport]) -> None:
    folder, done = llama
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    for rows, tokens in SHAPES:
        given = batch(rows, tokens, 320)
        (found,) = run(done.output, given)
        with torch.no_grad():
            should = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
        real = given["attention_mask"].bool()
        assert should.abs().max() > 1
        torch.testing.assert_close(found[real], should[real], rtol=0, atol=2e-5)


def test_it_tells_what_it_wrote_and_measured(llama: tuple[Path, OnnxExport]) -> None:
    folder, done = llama
    assert done.output == folder.with_name("onnx") / "model.onnx"
    assert done.files == ("model.onnx",)
    assert done.size_bytes == done.output.stat().st_size
    assert (done.task, done.opset, done.int8) == ("causal-lm", 20, None)
    assert (done.inputs, done.outputs) == (("input_ids", "attention_mask"), ("logits",))
    assert 0 < done.largest_difference < 1e-4
    assert 0 < done.relative_difference < LIMIT / 10
    assert (1, 1) in done.shapes
    assert any("no keys and values" in note for note in done.notes)


def test_the_file_has_each_weight_once_under_its_name_and_no_trace_of_this_machine(
    llama: tuple[Path, OnnxExport],
) -> None:
    folder, done = llama
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    graph = onnx.load(done.output)
    stored = {value.name: onnx.numpy_helper.to_array(value) for value in graph.graph.initializer}
    floats = {name: value for name, value in stored.items() if value.dtype == np.float32}
    assert model.num_parameters() <= sum(value.size for value in floats.values()) < model.num_parameters() + 20
    for name, weight in model.named_parameters():
        turned = f"{name}.T" in floats
        np.testing.assert_array_equal(floats[f"{name}.T"].T if turned else floats[name], weight.detach().numpy())
    props = {entry.key: entry.value for entry in graph.metadata_props}
    assert props["model_name"] == "Llama"
    assert props["task"] == "causal-lm"
    assert props["made_by"].startswith("entrenar ")
    assert graph.opset_import[0].version == 20
    assert b"site-packages" not in done.output.read_bytes()


def test_it_is_a_teacher(llama: tuple[Path, OnnxExport]) -> None:
    folder, done = llama
    artifact = inspect_folder(done.output.parent)
    assert check_graph(artifact, "causal-lm") == []
    given = batch(3, 9, 320)
    teacher = load_onnx(artifact, "causal-lm", torch.device("cpu"))
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found, should = (called(one, given["input_ids"], given["attention_mask"]) for one in (teacher, model))
    real = given["attention_mask"].bool()
    torch.testing.assert_close(found[real], should.logits[real], rtol=0, atol=2e-5)


def test_weights_beside_the_graph_are_found_by_the_reader_and_by_onnxruntime(
    llama: tuple[Path, OnnxExport], tmp_path: Path
) -> None:
    _, done = llama
    file = tmp_path / "large.onnx"
    files = save(onnx_ir.load(done.output), file, max_inside_bytes=50_000)
    assert files == (file, tmp_path / "large.onnx.data")
    assert external_files(file, tmp_path) == ("large.onnx.data",)
    assert file.stat().st_size < done.size_bytes / 2
    given = batch(2, 5, 320)
    assert torch.equal(run(file, given)[0], run(done.output, given)[0])


@pytest.mark.parametrize("pool", ["first", "last", "mean"])
def test_pooling_that_can_be_traced_pools_alike(pool: Pool) -> None:
    hidden_BTH = torch.randn(5, 8, 6, generator=torch.Generator().manual_seed(0))
    mask_BT = torch.tensor([[1] * 8, [1] + [0] * 7, [0] * 5 + [1] * 3, [0, 1] * 4, [1, 1, 0, 0, 1, 1, 0, 0]])
    torch.testing.assert_close(pooled_whole(hidden_BTH, mask_BT, pool), pooled(hidden_BTH, mask_BT, pool))


def test_a_sentence_encoder_is_whole_and_quantised(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tiny_bert(tmp_path / "encoder", initializer_range=0.3, num_hidden_layers=1)
    files = sentence_files("mean", 32, 128)
    for name, value in (files | {"modules.json": [*files["modules.json"], _NORMALIZE]}).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value))
    capfd.readouterr()
    done = export_onnx(inspect_folder(folder), tmp_path / "encoder.onnx", int8=True)
    assert capfd.readouterr() == ("", "")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["encoder", "encoder.onnx"]
    assert done.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert done.outputs == ("last_hidden_state", "sentence_embedding")
    assert done.relative_difference < LIMIT / 10
    change = done.int8
    assert change is not None
    assert change.top_1_agreement is None
    assert change.matrices == 6
    assert 0.99 < change.cosine < 1
    assert 0 < change.relative_rms < 0.1
    given = batch(4, 21, 100)
    hidden, vectors = run(done.output, given)
    model = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        should = model(**given).last_hidden_state
    mean = functional.normalize(pooled(should, given["attention_mask"], "mean"), dim=-1)
    assert hidden.shape == should.shape
    assert (vectors * mean).sum(-1).min() > 0.99
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(4))


def changed(folder: Path, **settings: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "more", "error", "message", "hint"),
    [
        ({"model_type": "t5"}, {}, ModelError, "has an encoder and a decoder", "such as llama, mistral"),
        ({"num_local_experts": 4}, {}, ModelError, "chooses among experts while it runs", "such as llama, mistral"),
        ({"architectures": ["LlamaForQuestionAnswering"]}, {}, ModelError, "does not tell what it is for", "causal-lm"),
        ({}, {"task": "sequence-classification"}, ModelError, "no trained head for sequence-classif", "train one"),
        ({}, {"task": "translation"}, UsageError, "translation is no task", "masked-lm"),
        ({}, {"opset": 17}, UsageError, "opset 18 to 23, and 17", "take 18"),
        ({}, {"opset": 99}, UsageError, "opset 18 to 23, and 99", "take 23"),
    ],
)
def test_what_cannot_be_exported_is_refused_at_once(
    llama: tuple[Path, OnnxExport],
    tmp_path: Path,
    settings: dict[str, Any],
    more: dict[str, Any],
    error: type[EntrenarError],
    message: str,
    hint: str,
) -> None:
    folder = changed(Path(shutil.copytree(llama[0], tmp_path / "model")), **settings)
    with pytest.raises(error, match=message) as refused:
        export_onnx(inspect_folder(folder), tmp_path / "out", **more)
    assert hint in str(refused.value.hint)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_missing_package_is_named_with_the_extra(
    llama: tuple[Path, OnnxExport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ModelError, match="takes onnxscript, which is not installed") as refused:
        export_onnx(inspect_folder(llama[0]), tmp_path / "out")
    assert "pip install 'entrenar[onnx]'" in str(refused.value.hint)


def test_an_earlier_graph_is_kept(llama: tuple[Path, OnnxExport]) -> None:
    folder, done = llama
    before = done.output.read_bytes()
    with pytest.raises(OutputError, match="is there already"):
        export_onnx(inspect_folder(folder), done.output.parent)
    assert done.output.read_bytes() == before


def test_weights_that_are_no_numbers_leave_no_file(llama: tuple[Path, OnnxExport], tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(llama[0])
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="numbers that are not finite"):
        export_onnx(inspect_folder(tmp_path / "model"), tmp_path / "new" / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
