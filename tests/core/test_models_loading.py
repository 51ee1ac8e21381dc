"""A model is loaded whole or not at all, from the chosen files alone, and only a new head may be random."""

import json
import pickle
import shutil
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from entrenar_core.artifact import ModelArtifact, inspect_folder
from entrenar_core.errors import ModelError
from entrenar_core.models.facts import parameter_count, saved_bytes
from entrenar_core.models.loading import head_labels, infer_task, load_model
from entrenar_core.models.weights import StoredWeight, open_weights
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama

CAUSAL, CLASSES = "causal-lm", "sequence-classification"
IDS = torch.tensor([[5, 9, 100, 7], [8, 3, 3, 200]])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_llama(folder / "llama")
    tiny_gpt2(folder / "gpt2")
    tiny_bert(folder / "bert")
    tiny_bert(folder / "classifier", num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"})
    return folder


@pytest.fixture
def copy(models: Path, tmp_path: Path) -> Any:
    return lambda name: Path(shutil.copytree(models / name, tmp_path / name))


def edit_config(folder: Path, **changes: object) -> ModelArtifact:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return inspect_folder(folder)


def edit_weights(folder: Path, drop: str = "", **add: torch.Tensor) -> ModelArtifact:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor.clone() for name, tensor in weights.items() if not drop or drop not in name}
    save_file(kept | add, folder / "model.safetensors", {"format": "pt"})
    return inspect_folder(folder)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_causal_model_is_what_transformers_loads(models: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_model(inspect_folder(models / name), CAUSAL)
    assert capfd.readouterr() == ("", "")
    expected = AutoModelForCausalLM.from_pretrained(models / name, local_files_only=True)
    torch.testing.assert_close(model(input_ids=IDS).logits, expected(input_ids=IDS).logits, rtol=0, atol=0)
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert parameter_count(model) == sum(
        tensor.numel() for tensor in load_file(models / name / "model.safetensors").values()
    )


def test_nothing_of_the_folder_is_changed_by_training_or_by_replacing_the_file(copy: Any) -> None:
    folder = copy("llama")
    model = load_model(inspect_folder(folder), CAUSAL)
    before = model(input_ids=IDS).logits
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.write(b"\0" * size)
    assert torch.equal(model(input_ids=IDS).logits, before)


def test_the_chosen_file_is_read_and_not_the_customary_one(copy: Any, tmp_path: Path) -> None:
    folder = copy("llama")
    other = load_file(tiny_llama(tmp_path / "other", seed=1) / "model.safetensors")
    save_file(other, folder / "variant.safetensors", {"format": "pt"})
    model = load_model(inspect_folder(folder, files=["variant.safetensors"]), CAUSAL)
    assert torch.equal(model.model.embed_tokens.weight, other["model.embed_tokens.weight"])


def test_an_adapter_beside_the_weights_is_not_applied(copy: Any) -> None:
    folder = copy("llama")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "nowhere/else"}')
    assert type(load_model(inspect_folder(folder), CAUSAL)) is LlamaForCausalLM


def test_shards_are_one_model(tmp_path: Path, models: Path) -> None:
    sharded = inspect_folder(tiny_llama(tmp_path / "sharded", max_shard_size="40KB"))
    assert len(sharded.weight_files) > 1
    assert saved_bytes(tmp_path / "sharded") == sharded.weight_bytes
    one, other = load_model(sharded, CAUSAL), load_model(inspect_folder(models / "llama"), CAUSAL)
    assert torch.equal(one(input_ids=IDS).logits, other(input_ids=IDS).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_the_one_asked_for(models: Path, dtype: str) -> None:
    model = load_model(inspect_folder(models / "llama"), CAUSAL, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_a_generation_config_is_kept(copy: Any) -> None:
    folder = copy("llama")
    (folder / "generation_config.json").write_text('{"max_new_tokens": 77}')
    assert load_model(inspect_folder(folder), CAUSAL).generation_config.max_new_tokens == 77


def test_a_headless_encoder_gets_a_head_that_its_seed_decides(models: Path) -> None:
    artifact = inspect_folder(models / "bert")
    state = torch.random.get_rng_state()
    one, same, other = (load_model(artifact, CLASSES, label_names=["a", "b", "c"], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)
    assert (one.config.num_labels, one.config.id2label) == (3, {0: "a", 1: "b", 2: "c"})
    assert one.config.label2id == {"a": 0, "b": 1, "c": 2}
    weights = load_file(models / "bert" / "model.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in one.base_model.state_dict().items())


def test_a_fitting_head_is_kept_and_another_is_new(models: Path, copy: Any) -> None:
    artifact = inspect_folder(models / "classifier")
    trained = load_file(models / "classifier" / "model.safetensors")["classifier.weight"]
    for names in (None, ["bad", "fair", "good"]):
        assert torch.equal(load_model(artifact, CLASSES, label_names=names, seed=0).classifier.weight, trained)
    for names in (["a", "b"], ["good", "fair", "bad"]):
        weight = load_model(artifact, CLASSES, label_names=names, seed=0).classifier.weight
        assert weight.shape == (len(names), 32)
        assert not torch.equal(weight, trained[: len(names)])
    unnamed = edit_config(copy("classifier"), id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    named = load_model(unnamed, CLASSES, label_names=["x", "y", "z"])
    assert torch.equal(named.classifier.weight, trained)
    assert named.config.id2label[2] == "z"


def test_a_trained_head_has_names_and_nothing_else_has(models: Path, copy: Any) -> None:
    assert head_labels(inspect_folder(models / "classifier")) == ("bad", "fair", "good")
    assert head_labels(inspect_folder(models / "bert")) is None
    assert head_labels(inspect_folder(models / "llama")) is None
    assert head_labels(edit_weights(copy("classifier"), drop="classifier")) is None


@pytest.mark.parametrize("names", [{"0": "a", "2": "b"}, ["a"], {"zero": "a"}])
def test_names_of_classes_that_cannot_be_read_are_an_error(copy: Any, names: object) -> None:
    with pytest.raises(ModelError, match="id2label"):
        head_labels(edit_config(copy("classifier"), id2label=names))


def test_a_decoder_classifies_rows_of_any_length_with_a_pad_token(models: Path, copy: Any) -> None:
    artifact = edit_config(copy("gpt2"), pad_token_id=None)
    model = load_model(artifact, CLASSES, label_names=["a", "b", "c"], seed=0, pad_token_id=2)
    padded = torch.tensor([[5, 9, 2, 2], [8, 3, 3, 7]])
    alone = model(input_ids=padded[:1, :2]).logits
    torch.testing.assert_close(model(input_ids=padded, attention_mask=padded != 2).logits[:1], alone)


def test_the_task_comes_from_the_models(models: Path) -> None:
    llama, bert, classifier = (inspect_folder(models / name) for name in ("llama", "bert", "classifier"))
    assert infer_task(llama, None) == infer_task(llama, llama) == infer_task(bert, llama) == CAUSAL
    assert infer_task(classifier, None) == infer_task(classifier, llama) == infer_task(bert, classifier) == CLASSES
    assert infer_task(bert, None) is infer_task(bert, bert) is infer_task(llama, classifier) is None


def test_missing_weights_are_named(copy: Any) -> None:
    artifact = edit_weights(copy("llama"), drop="layers.1.mlp")
    with pytest.raises(
        ModelError, match=r"lack model\.layers\.1\.mlp\.down_proj\.weight, model\.layers\.1\.mlp\.gate_proj"
    ):
        load_model(artifact, CAUSAL)


def test_weights_left_over_are_named(copy: Any) -> None:
    artifact = edit_weights(copy("llama"), **{"model.layers.2.mlp.up_proj.weight": torch.zeros(64, 32)})
    with pytest.raises(ModelError, match=r"have, and the model does not, model\.layers\.2\.mlp\.up_proj\.weight"):
        load_model(artifact, CAUSAL)


def test_weights_of_another_shape_are_named(copy: Any) -> None:
    with pytest.raises(ModelError, match=r"have in another shape model\.layers\.0\.mlp"):
        load_model(edit_config(copy("llama"), intermediate_size=48), CAUSAL)


def test_a_trained_head_without_its_bias_or_pooler_is_not_completed_at_random(copy: Any) -> None:
    for part in ("classifier.bias", "pooler"):
        artifact = edit_weights(copy("classifier"), drop=part)
        with pytest.raises(ModelError, match=part):
            load_model(artifact, CLASSES)
        shutil.rmtree(artifact.path)


def test_a_safetensors_file_cut_short_is_an_error(copy: Any) -> None:
    folder = copy("classifier")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    for load in (lambda: load_model(inspect_folder(folder), CLASSES), lambda: head_labels(inspect_folder(folder))):
        with pytest.raises(ModelError, match=r"model\.safetensors") as raised:
            load()
        assert raised.value.hint


def test_a_model_that_transformers_lacks_is_an_error(copy: Any) -> None:
    with pytest.raises(ModelError, match="newcomer") as raised:
        load_model(edit_config(copy("llama"), model_type="newcomer"), CAUSAL)
    assert "newer version" in str(raised.value.hint)


def test_a_config_of_nonsense_is_an_error(copy: Any) -> None:
    with pytest.raises(ModelError, match="configuration"):
        load_model(edit_config(copy("llama"), hidden_size="wide"), CAUSAL)


def test_weights_that_only_another_library_reads_are_refused(copy: Any) -> None:
    artifact = edit_config(copy("llama"), quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="quantised"):
        load_model(artifact, CAUSAL)


def test_onnx_is_refused_by_name(copy: Any) -> None:
    folder = copy("llama")
    (folder / "model.safetensors").unlink()
    (folder / "model.onnx").write_bytes(bytes([7 << 3 | 2, 0]))  # one graph with nothing in it
    with pytest.raises(ModelError, match="is ONNX"):
        load_model(inspect_folder(folder), CAUSAL)


def as_pickle(folder: Path, content: Any, **options: Any) -> ModelArtifact:
    (folder / "model.safetensors").unlink(missing_ok=True)
    torch.save(content, folder / "pytorch_model.bin", **options)
    return inspect_folder(folder, allow_pickle=True)


def test_an_allowed_pickle_is_read(models: Path, copy: Any) -> None:
    folder = copy("classifier")
    artifact = as_pickle(folder, load_file(folder / "model.safetensors"))
    assert head_labels(artifact) == ("bad", "fair", "good")
    batch = {"input_ids": IDS % 99, "attention_mask": torch.ones_like(IDS)}
    expected = load_model(inspect_folder(models / "classifier"), CLASSES)(**batch).logits
    assert torch.equal(load_model(artifact, CLASSES)(**batch).logits, expected)


class Runs:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("ran"),)


def test_a_pickle_runs_nothing(copy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("llama")
    monkeypatch.chdir(folder)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(as_pickle(folder, {"weight": Runs()}), CAUSAL)
    assert not Path("ran").exists()


def test_pickles_that_ask_for_more_than_they_hold_are_refused(copy: Any) -> None:
    folder = copy("llama")
    with pytest.raises(ModelError, match="claims more numbers"):
        load_model(as_pickle(folder, {"weight": torch.zeros(1).expand(10**12)}), CAUSAL)
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(folder / "new", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    (folder / "new").replace(file)
    with pytest.raises(ModelError, match="compressed"):
        load_model(inspect_folder(folder, allow_pickle=True), CAUSAL)


@pytest.mark.parametrize("content", [[1, 2], {"step": 3}])
def test_a_pickle_of_something_else_is_refused(copy: Any, content: object) -> None:
    with pytest.raises(ModelError, match="other than named tensors"):
        load_model(as_pickle(copy("llama"), content), CAUSAL)


def test_a_file_that_is_no_archive_is_refused(copy: Any) -> None:
    folder = copy("llama")
    artifact = as_pickle(folder, {})
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ModelError, match=r"before 1\.6"):
        load_model(artifact, CAUSAL)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "entrenar_own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_weights_that_are_whole_numbers_are_not_taken_for_real_ones(copy: Any) -> None:
    folder = copy("llama")
    weights = {name: (tensor * 100).to(torch.int8) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"holds whole numbers \(torch\.int8\)") as raised:
        load_model(inspect_folder(folder), CAUSAL)
    assert "16 or 32 bits" in str(raised.value.hint)


def test_two_classes_of_one_name_are_refused(copy: Any) -> None:
    folder = copy("classifier")
    artifact = edit_config(folder, id2label={"0": "a", "1": "b", "2": "a"}, label2id={"a": 0, "b": 1})
    with pytest.raises(ModelError, match="two classes in `id2label` of its config have one name"):
        head_labels(artifact)


def test_code_of_a_model_runs_only_when_trusted(copy: Any, capfd: pytest.CaptureFixture[str]) -> None:
    folder = copy("llama")
    (folder / "own.py").write_text(CODE)
    code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    artifact = edit_config(folder, model_type="entrenar_own", architectures=["OwnModel"], auto_map=code)
    with pytest.raises(ModelError, match="custom code") as raised:
        load_model(artifact, CAUSAL)
    assert "`trust_remote_code: true`" in str(raised.value.hint)
    assert not any(name.endswith(".own") for name in sys.modules)
    model = load_model(artifact, CAUSAL, trust_remote_code=True)
    assert type(model).__name__ == "OwnModel"
    assert capfd.readouterr() == ("", "")


def write_gguf(folder: Path, path: Path) -> Path:
    """The tiny Llama of a folder as llama.cpp stores it, with its matrices in Q8_0."""
    config = LlamaConfig.from_pretrained(folder)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in load_file(folder / "model.safetensors").items():
        numbers = tensor.numpy()
        if count := next((count for part, count in heads.items() if part in name), None):
            rows, columns = numbers.shape
            numbers = numbers.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        kind = gguf.GGMLQuantizationType.Q8_0 if numbers.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(numpy.ascontiguousarray(numbers), kind)
        writer.add_tensor(names.get_name(name, (".weight",)), data, raw_dtype=kind)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    return path


def test_a_gguf_is_dequantised_into_a_model_that_can_be_saved(
    models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    artifact = inspect_folder(write_gguf(models / "llama", tmp_path / "model.gguf"))
    model = load_model(artifact, CAUSAL)
    assert capfd.readouterr().err == ""
    expected = AutoModelForCausalLM.from_pretrained(models / "llama", local_files_only=True)
    torch.testing.assert_close(model(input_ids=IDS).logits, expected(input_ids=IDS).logits, atol=0.01, rtol=0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", local_files_only=True)
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()


def test_a_gguf_classifies_with_a_new_head(models: Path, tmp_path: Path) -> None:
    artifact = inspect_folder(write_gguf(models / "llama", tmp_path / "model.gguf"))
    assert (infer_task(artifact, None), head_labels(artifact)) == (CAUSAL, None)
    one, same = (load_model(artifact, CLASSES, label_names=["a", "b", "c"], seed=3) for _ in range(2))
    assert one.score.weight.shape == (3, 32)
    assert torch.equal(one.score.weight, same.score.weight)


def test_weights_are_read_when_they_are_asked_for_and_are_then_the_readers_own(copy: Any) -> None:
    folder = copy("llama")
    file, expected = folder / "model.safetensors", load_file(folder / "model.safetensors")
    opened = open_weights(inspect_folder(folder))
    found = {name: weight[...] for name, weight in opened.items()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    before = found["model.norm.weight"].clone()
    file.write_bytes(file.read_bytes()[:-1])
    assert torch.equal(found["model.norm.weight"], before)
    last = max((weight for weight in opened.values() if isinstance(weight, StoredWeight)), key=lambda one: one.start)
    with pytest.raises(ValueError, match="shorter"):
        last[...]


def test_sixteen_bit_shards_load_at_32_bits_without_a_second_copy(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama", max_shard_size="2MB", hidden_size=256, intermediate_size=1024)
    for shard in folder.glob("*.safetensors"):
        save_file({name: value.bfloat16() for name, value in load_file(shard).items()}, shard, {"format": "pt"})
    load_model(inspect_folder(folder), CAUSAL)  # what the first call imports and keeps
    tracemalloc.start()
    model = load_model(inspect_folder(folder), CAUSAL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = sum(weight.numel() for weight in model.parameters()) * 2
    assert peak < whole / 2, "numpy's memory, in which files are read, is that of a few weights"
