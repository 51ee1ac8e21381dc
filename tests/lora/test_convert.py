"""`entrenar-lora convert` from a command line: forms, bases, refusals; files themselves are tested with the library."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from entrenar_lora.cli import main
from tiny_models import tiny_llama
from trained_adapters import saved_adapter


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    return saved_adapter(folder, base, target_modules=["q_proj", "v_proj"], alpha_pattern={"v_proj": 3})


def test_every_form_of_output_is_shown(
    adapter: Path, base: Path, tmp_path: Path, check_output: Callable[..., dict[str, Any]]
) -> None:
    output = tmp_path / "adapter.gguf"
    found = check_output(
        main,
        ["convert", str(adapter), "--to", "gguf", "--base", str(base), "--output", str(output), "--force"],
        values={"form": "gguf", "files": ["adapter.gguf"], "tensors": 8, "folded": 2, "source": str(adapter)},
        shows=["Written to", "Scale folded into B", "2 modules", "llama.cpp has one alpha"],
        quiet=[str(output)],
    )
    assert found["size_bytes"] == output.stat().st_size


def test_a_base_that_the_adapter_names_is_found_here_and_its_settings_are_enough(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert main(["convert", str(adapter), "--to", "gguf", "--output", str(tmp_path / "named.gguf")]) == 0
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "config.json").write_text((base / "config.json").read_text())
    alone = ["--base", str(tmp_path / "settings"), "--output", str(tmp_path / "alone.gguf")]
    assert main(["convert", str(adapter), "--to", "gguf", *alone]) == 0
    assert (tmp_path / "named.gguf").stat().st_size > 0


def test_there_and_back_through_every_form(adapter: Path, base: Path, tmp_path: Path) -> None:
    steps = [
        ("safetensors", "one.safetensors", []),
        ("pytorch", "two.pth", []),
        ("peft", "three", ["--allow-pickle"]),
        ("gguf", "four.gguf", ["--base", str(base)]),
        ("peft", "five", ["--dtype", "fp32"]),
    ]
    source = adapter
    for form, name, flags in steps:
        assert main(["convert", str(source), "--to", form, "--output", str(tmp_path / name), *flags]) == 0
        source = tmp_path / name
    assert json.loads((tmp_path / "three" / "adapter_config.json").read_text()) == json.loads(
        (adapter / "adapter_config.json").read_text()
    )
    before = load_file(adapter / "adapter_model.safetensors")
    after = load_file(tmp_path / "five" / "adapter_model.safetensors")
    assert set(before) == set(after)


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["--to", "gguf", "--output", "OUT.gguf", "--dtype", "int8"], 2, "not cast to int8"),
        (["--to", "gguf", "--output", "OUT"], 2, "does not end as a GGUF"),
        (["--to", "peft", "--output", "OUT.safetensors"], 2, "keeps an adapter in a folder"),
        (["--to", "peft", "--output", "OUT", "--alpha", "99"], 2, "own files say 8"),
        (["--to", "safetensors", "--output", "OUT.safetensors", "--base", "NONE"], 1, "NONE"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(
    argv: list[str], status: int, message: str,
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    places = {"OUT": str(tmp_path / "out"), "NONE": str(tmp_path / "NONE")}
    filled = [arg.replace("OUT", places["OUT"]).replace("NONE", places["NONE"]) for arg in argv]
    capsys.readouterr()
    assert main(["convert", str(adapter), *filled]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_not_at_hand_is_asked_for(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    save_file(load_file(adapter / "adapter_model.safetensors"), tmp_path / "adapter_model.safetensors")
    for named in ("org/somewhere-else", "/not/here", None):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": named}))
        capsys.readouterr()
        assert main(["convert", str(tmp_path), "--to", "gguf", "--output", str(tmp_path / "a.gguf")]) == 1
        err = capsys.readouterr().err
        assert "takes the settings of its base model" in err
        assert "--base MODEL" in err
        assert named is None or named in err
