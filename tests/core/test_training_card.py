"""The lines of a model card that load an adapter: run as a user would, wherever its base is."""

from pathlib import Path
from typing import Any

import pytest

from entrenar_core.training.card import loading
from lora_models import train
from tiny_models import tiny_bert

BASES = {
    "org/name@v2": "'org/name'",
    "models/base": "'models/base'",
    "models/tiny.gguf": "'models', gguf_file='tiny.gguf'",
    "tiny.gguf": "'.', gguf_file='tiny.gguf'",
    "pkg://made_models": "str(files('made_models'))",
    "pkg://made_models/base": "str(files('made_models') / 'base')",
    "pkg://made_models/tiny.gguf": "str(files('made_models')), gguf_file='tiny.gguf'",
}


@pytest.mark.parametrize(("base", "arguments"), BASES.items())
def test_a_base_is_loaded_from_where_it_is(base: str, arguments: str) -> None:
    lines = loading("causal-lm", base, None)
    assert f"AutoModelForCausalLM.from_pretrained({arguments})" in lines
    assert ("importlib.resources" in lines) == base.startswith("pkg://")
    compile(lines, "card", "exec")


def test_of_a_package_the_lines_run_and_classes_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "made_models"
    base = tiny_bert(package / "base", num_labels=3)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    adapter = train(base, tmp_path / "adapter", "classifies", r=2, target_modules=["query"], task_type="SEQ_CLS")
    lines = loading("sequence-classification", "pkg://made_models/base", ["no", "maybe", "yes"])
    found: dict[str, Any] = {}
    exec(lines.replace('"path/to/this/folder"', repr(str(adapter))).rpartition("\n")[0], found)
    assert found["model"].config.id2label == {0: "no", 1: "maybe", 2: "yes"}
