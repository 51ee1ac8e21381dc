"""What a merge writes: the same bytes where nothing changes, the base's shards and settings, and nothing at all where
base and adapter do not belong together or the disk is full.
"""

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from entrenar_core.adapters.merging import convert_merged, write_merged
from entrenar_core.adapters.planning import plan_merge
from entrenar_core.adapters.reading import open_adapter
from entrenar_core.conversion.converting import Quantizing
from entrenar_core.errors import EntrenarError, ModelError, OutputError, UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.quantization.mixes import mix_named
from entrenar_core.references import PathReference
from entrenar_core.stored_model import open_model
from lora_models import answers, by_peft, load, merged, train
from tiny_models import tiny_llama

QUERY = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "model", hidden_size=64, max_shard_size="60KB")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(base, tmp_path_factory.mktemp("adapter") / "lora", **QUERY)


def values_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def raw_tensors(folder: Path) -> dict[str, tuple[str, bytes]]:
    """The file and the bytes of every tensor."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found[name] = (file.name, tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return found


def test_what_no_adapter_changes_keeps_its_bits_its_file_and_its_place(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    report = merged(base, [adapter], tmp_path / "merged")
    before, after = raw_tensors(base), raw_tensors(tmp_path / "merged")
    assert len({file for file, _ in before.values()}) > 1, "the base has several shards"
    assert {name: file for name, (file, _) in after.items()} == {name: file for name, (file, _) in before.items()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    assert (report.tensors_changed, report.tensors_copied) == (2, len(before) - 2)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
    indices = (json.loads((one / "model.safetensors.index.json").read_text()) for one in (base, tmp_path / "merged"))
    assert len({json.dumps(index["weight_map"], sort_keys=True) for index in indices}) == 1


def test_settings_say_the_dtype_and_the_head_that_are_written(base: Path, tmp_path: Path) -> None:
    head = train(base, tmp_path / "head", **{**QUERY, "target_modules": ["lm_head"]})
    report = merged(base, [head], tmp_path / "merged", dtype="BF16")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
    assert set(report.dtypes) == {"BF16"}
    assert report.unties_head
    tensors = values_of(tmp_path / "merged")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    old = values_of(base)
    assert torch.equal(tensors["model.embed_tokens.weight"], old["model.embed_tokens.weight"].bfloat16())
    assert not torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])


def test_one_file_is_written_with_metadata_and_an_adapter_without_settings(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    save_file(values_of(base), tmp_path / "model.safetensors", metadata={"format": "pt", "made": "here"})
    shutil.copy(adapter / "adapter_model.safetensors", tmp_path / "lora-adapter.safetensors")
    with open_model(PathReference(str(tmp_path / "model.safetensors"))) as model:
        with (
            open_adapter(PathReference(str(tmp_path / "lora-adapter.safetensors"))) as bare,
            pytest.raises(UsageError, match="alpha"),
        ):
            plan_merge(model, [(bare, 1.0)])
        with open_adapter(PathReference(str(tmp_path / "lora-adapter.safetensors")), alpha=8) as bare:
            write_merged(plan_merge(model, [(bare, 1.0)]), tmp_path / "merged.safetensors")
    merged(base, [adapter], tmp_path / "folder")
    again = values_of(tmp_path / "folder")
    with safe_open(tmp_path / "merged.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "made": "here"}
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in again.items())


def test_a_gguf_holds_the_values_of_a_merge_that_was_converted(base: Path, adapter: Path, tmp_path: Path) -> None:
    from entrenar_core.conversion import convert

    merged(base, [adapter], tmp_path / "folder")
    mix = Quantizing(mix_named("q8_0"))
    with open_model(PathReference(str(tmp_path / "folder"))) as model:
        convert(model, WeightFormat.GGUF, tmp_path / "after.gguf", quantizing=mix)
    with open_model(PathReference(str(base))) as model, open_adapter(PathReference(str(adapter))) as opened:
        report = convert_merged(
            plan_merge(model, [(opened, 1.0)]), WeightFormat.GGUF, tmp_path / "merged.gguf", quantizing=mix
        )
    assert (tmp_path / "merged.gguf").read_bytes() == (tmp_path / "after.gguf").read_bytes()
    assert report.quantization == "q8_0"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["after.gguf", "folder", "merged.gguf"]


def test_what_is_read_is_never_replaced(base: Path, adapter: Path, tmp_path: Path) -> None:
    """By the writers of adapters, too."""
    from entrenar_core.adapters.combining import Combination
    from entrenar_core.adapters.extracting import Extraction, extract
    from entrenar_core.adapters.recombining import write_combined

    tuned, own = tmp_path / "tuned", tmp_path / "own"
    merged(base, [adapter], tuned)
    shutil.copytree(adapter, own)
    for file in own.iterdir():
        if not file.name.startswith("adapter_"):
            file.unlink()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with open_model(PathReference(str(base))) as first, open_model(PathReference(str(tuned))) as second:
        for output in (base, tuned, tmp_path):
            with pytest.raises(OutputError, match="is where"):
                extract(first, second, output, Extraction(rank=2), force=True)
    with open_adapter(PathReference(str(own))) as opened, pytest.raises(OutputError, match="is where"):
        write_combined([(opened, 1.0)], Combination("svd", rank=2), own, force=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_behind_a_link_the_folder_is_replaced_and_the_link_stays(base: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    merged(base, [adapter], tmp_path / "link", force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").is_file()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "real"]
    (tmp_path / "far").symlink_to(tmp_path / "not" / "there")
    merged(base, [adapter], tmp_path / "far")
    assert (tmp_path / "not" / "there" / "config.json").is_file()


@pytest.mark.parametrize("mix", ["f32", "bf16", "q8_0"])
def test_what_a_gguf_loses_of_an_update_is_that_of_its_values(
    base: Path, adapter: Path, tmp_path: Path, mix: str
) -> None:
    """By the files: what the GGUF holds, put back into safetensors, beside the sum in float32."""
    from entrenar_core.conversion import convert

    merged(base, [adapter], tmp_path / "exact", dtype="F32")
    with open_model(PathReference(str(base))) as model, open_adapter(PathReference(str(adapter))) as opened:
        plan = plan_merge(model, [(opened, 1.0)])
        changed = set(plan.targets)
        report = convert_merged(
            plan, WeightFormat.GGUF, tmp_path / "merged.gguf", quantizing=Quantizing(mix_named(mix))
        )
    with open_model(PathReference(str(tmp_path / "merged.gguf"))) as model:
        convert(model, WeightFormat.SAFETENSORS, tmp_path / "back.safetensors", dtype="F32")
    before, exact, back = values_of(base), values_of(tmp_path / "exact"), load_file(tmp_path / "back.safetensors")
    error = sum(float((back[name] - exact[name]).double().square().sum()) for name in changed)
    change = sum(float((exact[name] - before[name].float()).double().square().sum()) for name in changed)
    assert report.loss is not None
    assert report.loss.overall == pytest.approx((error / change) ** 0.5, rel=1e-4, abs=1e-7)
    assert (report.advice is not None) == (report.loss.overall > 0.05)


def test_what_is_not_weighed_and_another_base_are_told(base: Path, tmp_path: Path) -> None:
    tensors, norm = values_of(base), "model.norm.weight"
    matrices = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 64),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.ones(64, 2),
        f"base_model.model.{norm}": tensors[norm] + 1,
    }
    told = {}
    for name, weight in ((str(base), 0.5), ("org/another", 1.0)):
        adapter = save(tmp_path / f"{weight}", matrices, modules_to_save=["norm"], base_model_name_or_path=name)
        told[weight] = " ".join(merged(base, [adapter], tmp_path / f"to-{weight}", (weight,)).notes)
        assert torch.equal(values_of(tmp_path / f"to-{weight}")[norm], tensors[norm] + 1)
    assert f"taken whole from the adapter, whatever its weight and the scale: {norm}" in told[0.5]
    assert "says that its base is" not in told[0.5]
    assert "says that its base is org/another" in told[1.0]
    assert "taken whole" not in told[1.0]


def save(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    known = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(known))
    return folder


Q = "base_model.model.model.layers.0.self_attn.q_proj"
FITS = {f"{Q}.lora_A.weight": torch.ones(2, 64), f"{Q}.lora_B.weight": torch.ones(64, 2)}
NONE: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        ({f"{Q}.lora_A.weight": torch.ones(2, 48), f"{Q}.lora_B.weight": torch.ones(48, 2)}, NONE, "64 × 64"),
        ({name.replace("layers.0", "layers.9"): one for name, one in FITS.items()}, NONE, r"layers\.9.*the adapter"),
        ({**FITS, "base_model.model.model.norm.bias": torch.ones(64)}, {"bias": "all"}, "norm.bias.*no place"),
        (
            {**FITS, "base_model.model.model.norm.weight": torch.ones(63)}, {"modules_to_save": ["norm"]},
            "is 63, and 64 in",
        ),
        ({**FITS, f"{Q}.lora_B.bias": torch.ones(64)}, {"lora_bias": True}, "has none in"),
        ({**FITS, f"{Q}.lora_magnitude_vector.weight": torch.ones(63)}, {"use_dora": True}, "64 outputs, and 63"),
        ({**FITS, f"{Q}.lora_A.weight": torch.full((2, 64), torch.nan)}, NONE, "not finite"),
        (FITS, {"init_lora_weights": "corda"}, "init_lora_weights: corda"),
        (FITS, {"init_lora_weights": "loftq"}, "init_lora_weights: loftq"),
        (FITS, {"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        (FITS, {"alora_invocation_tokens": [1, 2]}, "invocation tokens"),
        (FITS, {"layer_replication": [[0, 2]]}, "repeated layers"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused_and_nothing_is_written(
    base: Path, tmp_path: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any], said: str
) -> None:
    adapter = save(tmp_path / "adapter", tensors, **config)
    with pytest.raises(EntrenarError, match=said) as caught:
        merged(base, [adapter], tmp_path / "merged")
    assert caught.value.hint
    assert [one.name for one in tmp_path.iterdir()] == ["adapter"]


def test_a_quantised_base_is_refused_with_what_to_use_instead(base: Path, adapter: Path, tmp_path: Path) -> None:
    from entrenar_core.conversion import convert

    quantised = shutil.copytree(base, tmp_path / "bnb")
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"quantised \(bitsandbytes\)") as caught:
        merged(quantised, [adapter], tmp_path / "merged")
    assert "16 or 32 bits" in str(caught.value.hint)
    for mix in ("q8_0", "f16"):
        with open_model(PathReference(str(base))) as model:
            convert(model, WeightFormat.GGUF, tmp_path / f"{mix}.gguf", quantizing=Quantizing(mix_named(mix)))
        with pytest.raises(ModelError, match="GGUF") as caught:
            merged(tmp_path / f"{mix}.gguf", [adapter], tmp_path / "merged")
        assert ("convert" in str(caught.value.hint)) == (mix == "f16")


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """A disk that is full sooner."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_leaves_no_half_file(base: Path, adapter: Path, tmp_path: Path) -> None:
    with files_of_at_most(30_000), pytest.raises(OutputError, match="cannot be written"):
        merged(base, [adapter], tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_there_or_is_read_from_stays_as_it_is(base: Path, adapter: Path, tmp_path: Path) -> None:
    merged(base, [adapter], tmp_path / "merged")
    before = raw_tensors(tmp_path / "merged")
    with pytest.raises(OutputError, match="is there already"):
        merged(base, [adapter], tmp_path / "merged")
    for place in (base, adapter, adapter.parent):
        with pytest.raises(OutputError, match="is where"):
            merged(base, [adapter], place, force=True)
    assert raw_tensors(tmp_path / "merged") == before
    merged(base, [adapter], tmp_path / "merged", (0.5,), force=True)
    assert raw_tensors(tmp_path / "merged") != before


KILLED = """
import sys, time
from lora_models import merged
from pathlib import Path
base, adapter, output = map(Path, sys.argv[1:])
def told(done, total):
    print("writes", flush=True)
    time.sleep(60)
merged(base, [adapter], output, progress=told)
"""


@pytest.mark.nightly
def test_a_killed_merge_leaves_nothing(base: Path, adapter: Path, tmp_path: Path) -> None:
    script = tmp_path / "merge.py"
    script.write_text(KILLED)
    paths = [str(path) for path in (base, adapter, tmp_path / "out" / "merged")]
    process = subprocess.Popen(
        [sys.executable, str(script), *paths],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"writes\n"
    assert [one.name.startswith(".merged-") for one in (tmp_path / "out").iterdir()] == [True]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    process.stdout.close()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_base_of_torchs_own_files_gives_the_same_model(base: Path, adapter: Path, tmp_path: Path) -> None:
    whole = {name: tensor for file in base.glob("*.safetensors") for name, tensor in load_file(file).items()}
    (tmp_path / "torch").mkdir()
    torch.save(whole, tmp_path / "torch" / "pytorch_model.bin")
    shutil.copy(base / "config.json", tmp_path / "torch")
    with (
        open_model(PathReference(str(tmp_path / "torch")), allow_pickle=True) as model,
        open_adapter(PathReference(str(adapter))) as opened,
    ):
        write_merged(plan_merge(model, [(opened, 1.0)]), tmp_path / "merged")
    assert (answers(load(tmp_path / "merged")) - by_peft(base, adapter)).abs().max() <= 1e-5
