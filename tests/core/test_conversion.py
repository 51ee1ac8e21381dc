"""Conversions: to the bit where a dtype is kept, rounded once where it is not, and never half a file."""

import filecmp
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from entrenar_core.conversion import Conversion, convert
from entrenar_core.errors import EntrenarError, ModelError, OutputError, UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from tiny_models import tiny_bert, tiny_llama

LOSSLESS = {
    WeightFormat.SAFETENSORS: (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8,
                               torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64),
    WeightFormat.PYTORCH: (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8,
                           torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64),
    WeightFormat.APR: (torch.float32, torch.float16, torch.bfloat16),
    WeightFormat.APR_JSON: (torch.float32, torch.float16, torch.bfloat16),
}  # fmt: skip
NAMES = {
    WeightFormat.SAFETENSORS: "out.safetensors",
    WeightFormat.PYTORCH: "out.bin",
    WeightFormat.APR: "out.apr",
    WeightFormat.APR_JSON: "out.apr.json",
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def converted(source: Path, kind: WeightFormat, output: Path, **how: Any) -> Conversion:
    with open_model(parse_reference(str(source)), allow_pickle=True) as model:
        return convert(model, kind, output, **how)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name]
        .contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .equal(other[name].contiguous().reshape(-1).view(torch.uint8))
        for name in one
    )


@pytest.mark.parametrize("kind", LOSSLESS)
def test_there_and_back_is_the_same_to_the_bit(kind: WeightFormat, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {f"w.{dtype}": (torch.randn(3, 5, 7) * 9).to(dtype) for dtype in LOSSLESS[kind]}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "row": torch.randn(1, 6)}
    save_file(tensors, tmp_path / "in.safetensors")
    there = converted(tmp_path / "in.safetensors", kind, tmp_path / NAMES[kind])
    assert (there.copied, there.cast, there.dequantised) == (len(tensors), 0, {})
    converted(tmp_path / NAMES[kind], WeightFormat.SAFETENSORS, tmp_path / "back.safetensors")
    assert same(load_file(tmp_path / "back.safetensors"), tensors)


def test_torch_loads_what_is_written(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(40, 3), "b": torch.arange(5), "c": torch.randn(2, 2).bfloat16()}
    save_file(tensors, tmp_path / "in.safetensors")
    converted(tmp_path / "in.safetensors", WeightFormat.PYTORCH, tmp_path / "out.pt")
    assert same(torch.load(tmp_path / "out.pt", weights_only=True, mmap=True), tensors)


def test_values_in_another_order_are_put_row_by_row(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    torch.save({"t": base.t(), "part": base[1:3, 2:5], "tied": base}, tmp_path / "in.pt")
    converted(tmp_path / "in.pt", WeightFormat.SAFETENSORS, tmp_path / "out.safetensors")
    expected = {"t": base.t(), "part": base[1:3, 2:5], "tied": base}
    assert same(load_file(tmp_path / "out.safetensors"), expected)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_casting_is_torchs_and_its_rounding_is_told(dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    tensors = {"w": torch.randn(300, 7), "v": torch.randn(11).bfloat16(), "ids": torch.arange(4)}
    save_file(tensors, tmp_path / "in.safetensors")
    done = converted(tmp_path / "in.safetensors", WeightFormat.SAFETENSORS, tmp_path / "out.safetensors", dtype=dtype)
    target = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[dtype]
    expected = {"w": tensors["w"].to(target), "v": tensors["v"].to(target), "ids": tensors["ids"]}
    assert same(load_file(tmp_path / "out.safetensors"), expected)
    floats = torch.cat([tensors["w"].flatten(), tensors["v"].float()]).double()
    rounded = torch.cat([expected["w"].flatten(), expected["v"].flatten()]).double()
    if (moved := float((rounded - floats).norm() / floats.norm())) > 0:
        assert done.relative_rms == pytest.approx(moved, rel=0.02)  # of what was cast, which leaves out the copied
    else:
        assert not done.relative_rms


def test_what_would_become_infinite_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([1.0, 7e4])}, tmp_path / "in.safetensors")
    with pytest.raises(ModelError, match="1 value is beyond what F16 holds"):
        converted(tmp_path / "in.safetensors", WeightFormat.SAFETENSORS, tmp_path / "out.safetensors", dtype="F16")
    assert [file.name for file in tmp_path.iterdir()] == ["in.safetensors"]


@pytest.mark.parametrize("kind", [WeightFormat.SAFETENSORS, WeightFormat.PYTORCH])
def test_transformers_loads_the_shards_of_a_folder(llama: Path, kind: WeightFormat, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = converted(llama, kind, tmp_path / "out", shard_bytes=30_000)
    shards = [name for name in done.files if name.endswith((".safetensors", ".bin"))]
    assert len(shards) > 2
    sizes = {name: (tmp_path / "out" / name).stat().st_size for name in shards}
    assert all(size < 50_000 for size in sizes.values())  # one tensor alone may be larger than a shard
    assert done.size_bytes == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = AutoModelForCausalLM.from_pretrained(llama)
    assert same(dict(loaded.state_dict()), dict(expected.state_dict()))
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == AutoTokenizer.from_pretrained(llama).get_vocab()
    )


def test_the_config_says_which_dtype_the_weights_have(llama: Path, tmp_path: Path) -> None:
    converted(llama, WeightFormat.SAFETENSORS, tmp_path / "out", dtype="BF16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert {key: value for key, value in config.items() if key != "dtype"} == {
        key: value for key, value in json.loads((llama / "config.json").read_text()).items() if key != "dtype"
    }


def test_an_apr_says_what_the_model_is(llama: Path, tmp_path: Path) -> None:
    converted(llama, WeightFormat.APR, tmp_path / "model.apr")
    with open_model(parse_reference(str(tmp_path / "model.apr"))) as model:
        said = model.metadata
    assert (said["model_type"], said["num_layers"], said["hidden_size"], said["num_kv_heads"]) == ("llama", 2, 32, 2)
    assert len(said["tokenizer.vocabulary"]) == 320
    assert str(llama) not in json.dumps(said), "no path of this machine"


def test_a_dtype_that_a_format_lacks_is_named(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    save_file({**load_file(folder / "model.safetensors"), "ids": torch.arange(3)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="APR has no I64, which tensor ids is stored in"):
        converted(folder, WeightFormat.APR, tmp_path / "out.apr")


def test_a_buffer_that_a_format_has_no_dtype_for_is_left_out(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "bert")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "embeddings.position_ids": torch.arange(128)[None]}, folder / "model.safetensors")
    done = converted(folder, WeightFormat.APR, tmp_path / "out.apr")
    assert done.notes[0] == "embeddings.position_ids is no weight, and is left out: models make it anew"
    assert done.tensors == len(tensors)


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"kind": WeightFormat.ONNX}, "onnx is not written"),
        ({"dtype": "I8"}, "not cast to I8"),
        ({"output": "model.bin"}, "ends as a file of pytorch does"),
        ({"output": "out.safetensors", "shard_bytes": 100}, "is a single file"),
        ({"kind": WeightFormat.APR, "output": "folder", "shard_bytes": 100}, "is a single file"),
    ],
)
def test_what_cannot_be_meant_is_refused(llama: Path, tmp_path: Path, how: dict[str, Any], complaint: str) -> None:
    kind, output = how.pop("kind", WeightFormat.SAFETENSORS), tmp_path / how.pop("output", "out")
    with pytest.raises(UsageError, match=complaint):
        converted(llama, kind, output, **how)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_is_not_cut_since_peft_loads_no_shards(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a": torch.zeros(40, 3), "b": torch.zeros(40, 3)}, tmp_path / "lora" / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="is an adapter, of which peft loads no shards") as refused:
        converted(tmp_path / "lora", WeightFormat.SAFETENSORS, tmp_path / "out", shard_bytes=500)
    assert refused.value.hint == "leave out --shard-size"
    assert not (tmp_path / "out").exists()
    whole = converted(tmp_path / "lora", WeightFormat.SAFETENSORS, tmp_path / "out")
    assert whole.files == ("adapter_model.safetensors", "adapter_config.json")


def test_a_tensor_with_the_name_of_the_metadata_is_refused(tmp_path: Path) -> None:
    torch.save({"__metadata__": torch.zeros(3), "w": torch.zeros(3)}, tmp_path / "in.bin")
    with pytest.raises(ModelError, match="a tensor is called __metadata__"):
        converted(tmp_path / "in.bin", WeightFormat.SAFETENSORS, tmp_path / "out.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["in.bin"]


def with_file(llama: Path, folder: Path, name: str, size_bytes: int) -> Path:
    shutil.copytree(llama, folder)
    with (folder / name).open("ab") as file:
        file.truncate(size_bytes)
    return folder


@pytest.mark.parametrize(
    ("name", "size_bytes"),
    [
        ("config.json", 1 << 40),
        ("tokenizer.json", 3 << 30),
        ("generation_config.json", 1 << 25),
        ("vocab.txt", 1 << 31),
    ],
)
def test_a_file_beside_the_weights_that_is_too_large_is_refused(
    llama: Path, tmp_path: Path, name: str, size_bytes: int
) -> None:
    folder = with_file(llama, tmp_path / "in", name, size_bytes)
    with pytest.raises(ModelError, match=f"{name} is too large for a file of"):
        converted(folder, WeightFormat.SAFETENSORS, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("by_the_system", [True, False])
def test_files_beside_the_weights_are_copied_in_little_memory(
    llama: Path, tmp_path: Path, by_the_system: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_the_system:
        monkeypatch.delattr("os.copy_file_range", raising=False)
    folder = with_file(llama, tmp_path / "in", "tokenizer.model", 60_000_001)
    with (folder / "tokenizer.model").open("r+b") as file:
        file.write(b"start")
        file.seek(-3, 2)
        file.write(b"end")
    tracemalloc.start()
    converted(folder, WeightFormat.SAFETENSORS, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    for name in ("tokenizer.model", "tokenizer.json", "config.json"):
        assert filecmp.cmp(folder / name, tmp_path / "out" / name, shallow=False)


def test_nothing_is_overwritten_unless_asked_for_and_then_only_models(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    converted(llama, WeightFormat.SAFETENSORS, out)
    with pytest.raises(OutputError, match="is there already"):
        converted(llama, WeightFormat.SAFETENSORS, out)
    converted(llama, WeightFormat.SAFETENSORS, out, shard_bytes=30_000, force=True)
    assert not (out / "model.safetensors").exists(), "files of the earlier model are gone"
    (out / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match=r"holds thesis\.tex, which is no part of a model"):
        converted(llama, WeightFormat.SAFETENSORS, out, force=True)
    assert (out / "thesis.tex").read_text() == "x"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]


def test_what_is_read_is_not_replaced(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "model")
    for output in (tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        with pytest.raises(OutputError, match="is read from"):
            converted(tmp_path / "model", WeightFormat.SAFETENSORS, output, force=True)


def test_a_source_that_is_cut_short_meanwhile_leaves_nothing(llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.safetensors"
    shutil.copy(llama / "model.safetensors", source)
    with open_model(parse_reference(str(source))) as model:
        source.write_bytes(source.read_bytes()[:40_000])
        with pytest.raises(EntrenarError):
            convert(model, WeightFormat.PYTORCH, tmp_path / "out.bin")
    assert [file.name for file in tmp_path.iterdir()] == ["in.safetensors"]


def test_progress_tells_every_byte(llama: Path, tmp_path: Path) -> None:
    for kind, name in ((WeightFormat.SAFETENSORS, "out.safetensors"), (WeightFormat.PYTORCH, "out.bin")):
        told: list[tuple[int, int]] = []

        def tell(done: int, total: int, told: list[tuple[int, int]] = told) -> None:
            told.append((done, total))

        converted(llama, kind, tmp_path / name, progress=tell)
        size = sum(tensor.numel() * 4 for tensor in load_file(llama / "model.safetensors").values())
        assert sum(done for done, _ in told) == size
        assert {total for _, total in told} == {size}
