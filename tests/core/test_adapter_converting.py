"""Adapters in other forms and back: the same bits, loaded by peft and by torch; what is refused leaves no file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from entrenar_core.adapters.converting import Form, convert_adapter
from entrenar_core.adapters.reading import open_adapter
from entrenar_core.adapters.results import AdapterConversion
from entrenar_core.errors import EntrenarError, ModelError, OutputError, UsageError
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from tiny_models import tiny_gpt2, tiny_llama
from trained_adapters import last_log_probabilities, saved_adapter

TARGETS = ["q_proj", "v_proj", "down_proj"]
ROWS = [[5, 9, 23, 42], [7, 88, 130]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_adapter(tmp_path_factory.mktemp("adapter"), base, target_modules=TARGETS)


def convert(source: Path, form: Form, output: Path, *, base: Path | None = None, **settings: Any) -> AdapterConversion:
    with open_model(parse_reference(str(source)), allow_pickle=True) as model:
        if base is None:
            return convert_adapter(model, form, output, **settings)
        with open_model(parse_reference(str(base))) as given:
            return convert_adapter(model, form, output, base=given, **settings)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "adapter_model.safetensors"))


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor.contiguous().view(torch.uint8), other[name].contiguous().view(torch.uint8)), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"use_dora": True, "modules_to_save": ["norm"]},
        {"target_modules": ["q_proj", "embed_tokens"], "lora_bias": False},
    ],
)
@pytest.mark.parametrize("by", ["adapter.safetensors", "adapter.pth", "folder"])
def test_a_file_alone_keeps_all_that_peft_saved(by: str, settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    source = saved_adapter(tmp_path / "adapter", base, **({"target_modules": TARGETS} | settings))
    form: Form = "safetensors" if by.endswith("safetensors") else "pytorch"
    convert(source, form, tmp_path / by)
    convert(tmp_path / by, "peft", tmp_path / "back")
    assert_same_bits(tensors_of(source), tensors_of(tmp_path / "back"))
    before, after = (json.loads((one / "adapter_config.json").read_text()) for one in (source, tmp_path / "back"))
    assert before == after


def test_torch_reads_the_file_and_the_folder(adapter: Path, tmp_path: Path) -> None:
    convert(adapter, "pytorch", tmp_path / "adapter.pth")
    convert(adapter, "pytorch", tmp_path / "folder")
    alone = torch.load(tmp_path / "adapter.pth", weights_only=True)
    assert alone.pop("lora_alpha") == "8"
    assert json.loads(alone.pop("adapter_config"))["r"] == 4
    assert alone.pop("r") == "4"
    assert_same_bits(alone, tensors_of(adapter))
    assert_same_bits(torch.load(tmp_path / "folder" / "adapter_model.bin", weights_only=True), tensors_of(adapter))


def test_peft_loads_the_folder_of_pytorch(adapter: Path, base: Path, tmp_path: Path) -> None:
    convert(adapter, "pytorch", tmp_path / "folder")
    assert last_log_probabilities(base, tmp_path / "folder", ROWS) == last_log_probabilities(base, adapter, ROWS)


def test_the_metadata_of_a_file_says_its_settings(adapter: Path, tmp_path: Path) -> None:
    done = convert(adapter, "safetensors", tmp_path / "adapter.safetensors")
    with safe_open(tmp_path / "adapter.safetensors", "pt") as file:
        said = file.metadata()
    assert (said["lora_alpha"], said["r"], said["format"]) == ("8", "4", "pt")
    assert (done.tensors, done.cast, done.notes) == (12, 0, ())
    with open_adapter(parse_reference(str(tmp_path / "adapter.safetensors"))) as opened:
        assert opened.settings.alpha == 8
        assert opened.inferred == ("its settings are those in the metadata of the file",)


def test_what_settings_leave_open_is_written_as_it_is_known(base: Path, tmp_path: Path) -> None:
    source = saved_adapter(tmp_path / "adapter", base, target_modules=TARGETS)
    said = json.loads((source / "adapter_config.json").read_text())
    rank = said.pop("r")
    (source / "adapter_config.json").write_text(json.dumps({**said, "lora_alpha": None}))
    with pytest.raises(UsageError, match="does not say its alpha"):
        convert(source, "peft", tmp_path / "without")
    convert(source, "peft", tmp_path / "whole", alpha=32.0)
    found = json.loads((tmp_path / "whole" / "adapter_config.json").read_text())
    assert (found["r"], found["lora_alpha"]) == (rank, 32.0)


def test_a_bare_file_becomes_an_adapter_of_peft_once_its_alpha_is_given(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file({name.removeprefix("base_model.model."): one for name, one in tensors_of(adapter).items()}, bare)
    with pytest.raises(UsageError, match="does not say its alpha"):
        convert(bare, "peft", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for given, output in ((None, "plain"), (base, "named")):
        convert(bare, "peft", tmp_path / output, alpha=8.0, base=given)
        expected = last_log_probabilities(base, adapter, ROWS)
        assert last_log_probabilities(base, tmp_path / output, ROWS) == expected
    named = json.loads((tmp_path / "named" / "adapter_config.json").read_text())
    assert named["target_modules"] == sorted(TARGETS), "the base shows that no other module is called so"
    assert named["r"] == 4
    without = convert(bare, "safetensors", tmp_path / "still.safetensors")
    assert "there is no adapter_config.json beside it" in without.notes


def test_gpt2_is_told_to_peft_as_transposed(tmp_path: Path) -> None:
    base = tiny_gpt2(tmp_path / "base")
    source = saved_adapter(tmp_path / "adapter", base, target_modules=["c_attn"], fan_in_fan_out=True)
    (source / "adapter_config.json").unlink()
    convert(source, "peft", tmp_path / "out", alpha=8.0, base=base)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["fan_in_fan_out"] is True


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
def test_a_dtype_rounds_once_as_torch_does(dtype: str, torch_dtype: torch.dtype, adapter: Path, tmp_path: Path) -> None:
    done = convert(adapter, "peft", tmp_path / "half", dtype=dtype)
    assert_same_bits(
        {name: one.to(torch_dtype) for name, one in tensors_of(adapter).items()}, tensors_of(tmp_path / "half")
    )
    assert done.cast == 12
    assert done.relative_rms is not None
    assert 0 < done.relative_rms < 0.01


def test_what_a_dtype_does_not_hold_leaves_no_file(adapter: Path, tmp_path: Path) -> None:
    source = tmp_path / "large.safetensors"
    save_file({name: one * 1e6 for name, one in tensors_of(adapter).items()}, source)
    with pytest.raises(ModelError, match="beyond what F16 holds"):
        convert(source, "safetensors", tmp_path / "half.safetensors", dtype="F16")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.safetensors"]


def test_nan_is_refused(adapter: Path, tmp_path: Path) -> None:
    tensors = tensors_of(adapter)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors")
    with pytest.raises(ModelError, match="holds 1 values that are not finite"):
        convert(tmp_path / "nan.safetensors", "safetensors", tmp_path / "out.safetensors")


def test_a_base_that_it_does_not_fit_is_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="and the adapter changes"):
        convert(adapter, "peft", tmp_path / "out", base=tiny_llama(tmp_path / "other", hidden_size=64))


REFUSED: list[tuple[Form, str, dict[str, Any], type[EntrenarError], str]] = [
    ("gguf", "out", {}, UsageError, "does not end as a GGUF"),
    ("gguf", "out.gguf", {"dtype": "F64"}, UsageError, "no F64"),
    ("gguf", "out.gguf", {}, ModelError, "takes the settings of its base model"),
    ("peft", "out.safetensors", {}, UsageError, "keeps an adapter in a folder"),
    ("pytorch", "out.gguf", {}, UsageError, "ends as a file of gguf"),
    ("safetensors", "out.safetensors", {"alpha": 3.0}, UsageError, "own files say 8"),
    ("safetensors", "out.safetensors", {"rslora": True}, UsageError, "says otherwise"),
]


@pytest.mark.parametrize(("form", "output", "settings", "kind", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused_and_leaves_nothing(
    form: Form, output: str, settings: dict[str, Any], kind: type[EntrenarError], message: str,
    adapter: Path, tmp_path: Path,
) -> None:  # fmt: skip
    with pytest.raises(kind, match=message):
        convert(adapter, form, tmp_path / output, **settings)
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_replaced_only_with_force_and_never_the_source(adapter: Path, tmp_path: Path) -> None:
    convert(adapter, "peft", tmp_path / "out")
    with pytest.raises(OutputError, match="there already"):
        convert(adapter, "peft", tmp_path / "out")
    convert(adapter, "pytorch", tmp_path / "out", force=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["adapter_config.json", "adapter_model.bin"]
    with pytest.raises(OutputError, match="read from"):
        convert(tmp_path / "out", "peft", tmp_path / "out", force=True)
