"""`info` and `validate` of what only some architectures have: stacks, shared heads, names that tensors do not tell."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import save_file

from checkpoints import checkpoint
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from entrenar_inspect.reports.summary import ModelPart, ModelSummary, Rope
from entrenar_inspect.reports.validation import Check as Checked
from entrenar_inspect.summary import summarize
from entrenar_inspect.validating import validate

Check = Callable[..., dict[str, Any]]
SEQ2SEQ = "AutoModelForSeq2SeqLM"
CAUSAL = "AutoModelForCausalLM"


def summary_of(path: Path) -> ModelSummary:
    with open_model(parse_reference(str(path))) as model:
        return summarize(model)


def saved(folder: Path, name: str, kind: str, **changes: Any) -> Path:
    """A tiny model as transformers saves it, with other settings in its config.json; None takes one out."""
    checkpoint(name, kind).model.save_pretrained(folder)
    return rewritten(folder, **changes)


def rewritten(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def checked(folder: Path, name: str) -> Checked:
    return next(check for check in validate(str(folder)).checks if check.name == name)


def test_an_encoder_and_a_decoder_are_shown_both(tmp_path: Path, program: Any, check_output: Check) -> None:
    report = check_output(
        program,
        ["info", str(saved(tmp_path, "bart", SEQ2SEQ))],
        values={"num_layers": 3, "decoder_layers": 4, "num_heads": 4, "warnings": []},
        shows=["4 layers, hidden size 24, 6 heads, feed-forward size 60"],
        lines=["Layers\t3 + 4", "Hidden size\t24"],
    )
    assert [part["name"] for part in report["parts"]] == ["encoder", "decoder"]
    assert report["parts"][1]["num_heads"] == 6


def test_a_decoder_that_is_stored_alone_is_the_model(tmp_path: Path) -> None:
    found = summary_of(saved(tmp_path, "bart", CAUSAL))
    assert (found.num_layers, found.num_heads, found.num_kv_heads, found.intermediate_size) == (4, 6, 6, 60)
    assert (found.parts, found.decoder_layers, found.warnings) == ((), None, ())
    assert validate(str(tmp_path)).sound


def test_both_towers_of_a_clip_are_shown_and_one_alone_has_its_own_sizes(
    tmp_path: Path, program: Any, check_output: Check
) -> None:
    check_output(
        program,
        ["info", str(saved(tmp_path / "both", "clip", "AutoModel"))],
        values={"warnings": []},
        shows=["3 layers, hidden size 24, 4 heads", "4 layers, hidden size 32, 4 heads, feed-forward size 60"],
        lines=["Layers\t3 + 4"],
    )
    found = summary_of(saved(tmp_path / "one", "clip", "AutoModelForImageClassification"))
    assert (found.num_layers, found.hidden_size, found.intermediate_size, found.vocab_size) == (4, 32, 60, None)
    assert found.classes == ("CLIPForImageClassification",)


def test_a_t5_says_what_it_is_tied_by(tmp_path: Path) -> None:
    folder = saved(tmp_path, "t5", SEQ2SEQ)
    shared = tuple((f"{part}.embed_tokens.weight", "shared.weight") for part in ("encoder", "decoder"))
    assert summary_of(folder).tied == (("lm_head.weight", "shared.weight"), *shared)
    model = checkpoint("t5", SEQ2SEQ).model
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}
    assert {pointers[name] for name, _ in summary_of(folder).tied} == {pointers["shared.weight"]}
    assert summary_of(rewritten(folder, architectures=["T5Model"])).tied == shared
    rewritten(folder, architectures=["T5ForConditionalGeneration"], tie_word_embeddings=False)
    assert summary_of(folder).tied == shared
    assert checked(folder, "tied weights").status == "failed"
    (line,) = summary_of(folder).warnings
    assert line == "config.json says that the embeddings are not tied, and the tensors have no lm_head.weight"


@pytest.mark.parametrize(
    ("name", "kv_heads", "theta"),
    [("falcon", 1, 10_000), ("falcon with groups", 2, 10_000), ("falcon with biases", 4, None)],
)
def test_key_value_heads_of_a_falcon(name: str, kv_heads: int, theta: float | None, tmp_path: Path) -> None:
    found = summary_of(saved(tmp_path, name, CAUSAL))
    assert (found.num_heads, found.num_kv_heads, found.warnings) == (4, kv_heads, ())
    assert found.rope == (None if theta is None else Rope(theta, None, None)), "the last has ALiBi instead"
    wrong = summary_of(rewritten(tmp_path, multi_query=kv_heads != 1, new_decoder_architecture=False, num_kv_heads=4))
    assert any("key-value head" in line for line in wrong.warnings)


@pytest.mark.parametrize(("model_type", "known"), [("gemma", True), ("granite", False)])
def test_a_family_that_looks_like_a_llama_is_what_its_configuration_calls_it(
    model_type: str, known: bool, tmp_path: Path, program: Any, check_output: Check
) -> None:
    folder = saved(tmp_path, "gemma", CAUSAL, model_type=model_type)
    shows = [f"{model_type} (GemmaForCausalLM)", "its tensors laid out like those of llama"]
    report = check_output(program, ["info", str(folder)], values={"family": model_type, "warnings": []}, shows=shows)
    assert (model_type in report["families"]) is known
    assert checked(folder, "configuration").status == "ok"
    (folder / "config.json").unlink()
    alone = summary_of(folder)
    assert (alone.family, alone.families) == ("llama", ("llama", "mistral", "gemma"))


def test_a_first_deberta_is_known(tmp_path: Path) -> None:
    found = summary_of(saved(tmp_path, "deberta with distances", "AutoModelForMaskedLM"))
    assert (found.family, found.families, found.num_layers, found.warnings) == ("deberta", ("deberta",), 3, ())
    assert validate(str(tmp_path), strict=True).sound


def test_what_the_configuration_says_of_a_decoder_is_held_against_the_tensors(tmp_path: Path) -> None:
    folder = saved(tmp_path, "t5", SEQ2SEQ, num_decoder_layers=6)
    line = "config.json says num_decoder_layers 6, and the tensors have 4"
    assert line in summary_of(folder).warnings
    assert (checked(folder, "configuration").status, checked(folder, "configuration").message) == ("failed", line)


def test_a_size_that_is_none_is_a_warning(tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert", "AutoModel", hidden_size=-4)
    line = "config.json says hidden_size -4, which is no size"
    found = summary_of(folder)
    assert found.warnings == (line,)
    assert found.hidden_size == 24, "as the tensors have it"
    assert (checked(folder, "configuration").status, checked(folder, "configuration").message) == ("warning", line)
    assert validate(str(folder)).sound
    unknown = rewritten(folder, model_type="newcomer", architectures=None)
    save_file({"x": torch.zeros(3)}, unknown / "model.safetensors")
    assert summary_of(unknown).warnings == (line,)
    assert checked(unknown, "configuration").status == "warning"


def test_layers_and_experts_of_an_unknown_model_are_counted(tmp_path: Path) -> None:
    layers = {f"body.layers.{layer}.norm.weight": torch.zeros(8) for layer in range(5)}
    layers |= {
        f"body.layers.{layer}.moe.experts.{expert}.up.weight": torch.zeros(6, 8)
        for layer in range(1, 5)
        for expert in range(3)
    }
    save_file(layers, tmp_path / "model.safetensors")
    found = summary_of(tmp_path)
    assert (found.family, found.num_layers) == (None, 5)
    assert found.experts is not None
    assert (found.experts.per_layer, found.experts.parameters, found.experts.parameters_each) == (3, 4 * 3 * 48, 48)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "newcomer", "n_routed_experts": 4}))
    line = "config.json says n_routed_experts 4, and the tensors have 3"
    assert (summary_of(tmp_path).family, summary_of(tmp_path).warnings) == ("newcomer", (line,))
    assert (checked(tmp_path, "configuration").status, checked(tmp_path, "configuration").message) == ("failed", line)


def test_an_unknown_encoder_and_decoder_have_what_their_configuration_says(tmp_path: Path) -> None:
    config = {"model_type": "mbart", "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 16}
    (tmp_path / "config.json").write_text(json.dumps(config | {"d_model": 64}))
    save_file({"x": torch.zeros(3)}, tmp_path / "model.safetensors")
    found = summary_of(tmp_path)
    assert (found.num_layers, found.decoder_layers, found.num_heads, found.hidden_size) == (2, 3, 16, 64)


@pytest.mark.parametrize(
    ("changes", "rope", "window"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, Rope(5e5, None, None), 4096),
        ({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4}}, Rope(1e6, "yarn", 4), 4096),
        ({"rope_theta": "ten", "rope_scaling": "yarn", "sliding_window": "wide"}, None, None),
        ({"rope_theta": 1e4, "rope_scaling": {"rope_type": "llama3"}}, Rope(1e4, "llama3", None), 4096),
        ({"rope_theta": float("nan"), "use_sliding_window": False}, None, None),
        (
            {"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}, "full_attention": {"rope_theta": 1e6}}},
            Rope(1e6, None, None),
            4096,
        ),
    ],
)
def test_how_positions_are_turned_and_how_far_a_token_looks(
    changes: dict[str, Any], rope: Rope | None, window: int | None, tmp_path: Path
) -> None:
    parameters = {"rope_parameters": None} | changes
    found = summary_of(saved(tmp_path, "mistral", "AutoModel", **parameters))
    assert (found.rope, found.sliding_window) == (rope, window)


def test_a_gguf_says_it_in_its_metadata(tmp_path: Path, program: Any, check_output: Check) -> None:
    writer = GGUFWriter(str(tmp_path / "model.gguf"), "llama")
    writer.add_license("apache-2.0")
    writer.add_rope_freq_base(500_000.0)
    writer.add_sliding_window(1024)
    writer.add_rope_scaling_factor(8.0)
    writer.add_string("llama.rope.scaling.type", "linear")
    writer.add_tensor("token_embd.weight", torch.zeros(4, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    report = check_output(
        program,
        ["info", str(tmp_path / "model.gguf")],
        values={"license": "apache-2.0", "sliding_window": 1024},
        lines=["Rotary positions\tθ = 500,000, stretched by 8 (linear)", "Licence\tapache-2.0"],
    )
    assert report["rope"] == {"theta": 500_000.0, "scaling": "linear", "factor": 8.0}


def test_a_gguf_of_a_t5_has_both_of_its_stacks(tmp_path: Path, program: Any, check_output: Check) -> None:
    writer = GGUFWriter(str(tmp_path / "model.gguf"), "t5")
    writer.add_block_count(2)
    writer.add_decoder_block_count(3)
    writer.add_tensor("token_embd.weight", torch.zeros(4, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    values = {"num_layers": 2, "decoder_layers": 3}
    check_output(program, ["info", str(tmp_path / "model.gguf")], values=values, lines=["Layers\t2 + 3"])


def test_a_dtype_that_most_weights_do_not_have_is_noted(tmp_path: Path) -> None:
    folder = saved(tmp_path, "bert", "AutoModel")
    assert summary_of(folder).warnings == ()
    rewritten(folder, dtype="bfloat16")
    assert summary_of(folder).warnings == ("config.json says bfloat16, and most weights are F32",)
    assert summary_of(rewritten(folder, quantization_config={"bits": 4})).warnings == ()


def test_the_parts_of_a_report_are_plain(tmp_path: Path) -> None:
    assert summary_of(saved(tmp_path, "whisper", "AutoModel")).parts == (
        ModelPart("encoder", 3, 24, 4, 56),
        ModelPart("decoder", 4, 24, 6, 60),
    )
