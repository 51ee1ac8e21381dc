"""Settings of config.json that are left out or wrong: what transformers takes for them, or a clear refusal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from entrenar_core.artifact import inspect_folder
from entrenar_core.conversion import convert
from entrenar_core.conversion.converting import Quantizing
from entrenar_core.conversion.gguf_families import gguf_families
from entrenar_core.errors import ModelError, OutputError
from entrenar_core.formats import WeightFormat
from entrenar_core.models.loading import load_model
from entrenar_core.quantization.mixes import mix_named
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from exported_models import TOKENIZERS, exported_model

DECODERS = [name for name in TOKENIZERS if name != "bert"]
LONG = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 16}


def changed(folder: Path, **settings: Any) -> Path:
    """Settings of config.json anew; those that are None are taken out."""
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def written(folder: Path, target: Path, mix: str | None = None) -> tuple[str, ...]:
    with open_model(parse_reference(str(folder))) as model:
        quantizing = None if mix is None else Quantizing(mix_named(mix))
        return convert(model, WeightFormat.GGUF, target, quantizing=quantizing).notes


@pytest.mark.parametrize("model_type", DECODERS)
def test_heads_are_tied_where_transformers_ties_them(model_type: str, tmp_path: Path) -> None:
    """Many a config.json on the Hub, such as GPT-2's and Gemma's, does not say whether they are."""
    folder = changed(exported_model(tmp_path / "model", model_type), tie_word_embeddings=None)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    family = next(row for row in gguf_families().values() if model_type in row.family.model_types)
    assert bool(family.setting({}, "tie_word_embeddings")) is tied
    written(folder, tmp_path / "model.gguf")
    names = {tensor.name for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    assert ("output.weight" not in names) is tied


@pytest.mark.parametrize(
    ("rope", "says"),
    [
        ({"original_max_position_embeddings": 1}, "`original_max_position_embeddings`"),
        ({"original_max_position_embeddings": 0.5}, "`original_max_position_embeddings`"),
        ({"long_factor": ["a", 1.0, 1.0]}, "3 numbers above zero for `long_factor`"),
        ({"long_factor": [None, 1.0, 1.0]}, "`long_factor`"),
        ({"short_factor": [1e39, 1.0, 1.0]}, "`short_factor`"),
        ({"short_factor": [10**400, 1.0, 1.0]}, "`short_factor`"),
        ({"long_factor": [float("nan"), 1.0, 1.0]}, "`long_factor`"),
        ({"long_factor": [-1.0, 1.0, 1.0]}, "`long_factor`"),
        ({"long_factor": [True, 1.0, 1.0]}, "`long_factor`"),
    ],
)
def test_factors_of_positions_that_are_none_are_refused(rope: Mapping[str, Any], says: str, tmp_path: Path) -> None:
    sound = {"long_factor": [1.1, 2.0, 3.0], "short_factor": [1.0, 1.5, 2.5]}
    folder = exported_model(tmp_path / "model", "phi3", rope_parameters={**LONG, **sound})
    original = rope.get("original_max_position_embeddings", 16)
    changed(folder, rope_parameters={**LONG, **sound, **rope}, original_max_position_embeddings=original)
    with pytest.raises(ModelError, match=r"positions|tokens once") as error:
        written(folder, tmp_path / "model.gguf")
    assert says in error.value.message
    assert not (tmp_path / "model.gguf").exists()


def test_rows_that_no_block_divides_are_refused_or_told(tmp_path: Path) -> None:
    odd = exported_model(tmp_path / "odd", "llama", hidden_size=24, intermediate_size=40)
    with pytest.raises(ModelError, match=r"none of its \d+ matrices has rows that blocks of Q8_0, or of 32, divide"):
        written(odd, tmp_path / "odd.gguf", "q8_0")
    assert not (tmp_path / "odd.gguf").exists()
    some = exported_model(tmp_path / "some", "llama", hidden_size=64, intermediate_size=40, head_dim=16)
    notes = written(some, tmp_path / "some.gguf", "q8_0")
    layers = json.loads((some / "config.json").read_text())["num_hidden_layers"]
    assert any(
        f"blocks of 32 do not divide the rows of {layers} of" in note and f"{layers} F16" in note for note in notes
    )


def test_a_file_that_does_not_name_its_architecture_is_not_quantised_again(tmp_path: Path) -> None:
    folder = exported_model(tmp_path / "model", "llama", hidden_size=64, intermediate_size=64, head_dim=16)
    written(folder, tmp_path / "model.gguf")
    raw = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "nameless.gguf").write_bytes(raw.replace(b"general.architecture", b"general.architecturX", 1))
    with pytest.raises(ModelError, match="does not name its architecture"):
        written(tmp_path / "nameless.gguf", tmp_path / "again.gguf", "q8_0")


def test_what_another_program_wrote_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    folder = exported_model(tmp_path / "model", "llama")
    target = tmp_path / "model.gguf"
    with (
        open_model(parse_reference(str(folder))) as model,
        pytest.raises(OutputError, match=r"model.gguf is there already"),
    ):
        convert(model, WeightFormat.GGUF, target, check=lambda _: target.write_bytes(b"another's") and None)
    assert target.read_bytes() == b"another's"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.gguf"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    import os

    folder = exported_model(tmp_path / "model", "llama")
    os.mkfifo(tmp_path / "pipe.gguf")
    with (
        open_model(parse_reference(str(folder))) as model,
        pytest.raises(OutputError, match="no file that could be replaced"),
    ):
        convert(model, WeightFormat.GGUF, tmp_path / "pipe.gguf", force=True)
    assert (tmp_path / "pipe.gguf").is_fifo()


def test_buffers_of_older_files_are_no_weights(tmp_path: Path) -> None:
    """GPT-2 on the Hub has masks beside its weights."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = exported_model(tmp_path / "model", "gpt2")
    tensors = load_file(folder / "model.safetensors")
    layers = json.loads((folder / "config.json").read_text())["n_layer"]
    masks = {f"transformer.h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(layers)}
    save_file({**tensors, **masks}, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(inspect_folder(folder), "causal-lm")
    for name, weight in loaded.state_dict().items():
        if name in tensors:
            assert weight.equal(tensors[name])
    save_file({**tensors, "transformer.h.0.attn.odd": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"they have, and the model does not, transformer\.h\.0\.attn\.odd"):
        load_model(inspect_folder(folder), "causal-lm")
