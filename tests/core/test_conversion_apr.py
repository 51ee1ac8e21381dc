"""What an APR file holds of a model besides its tensors, what of it comes back, and what is said of the rest."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from entrenar_core.conversion import Conversion, convert
from entrenar_core.conversion.beside import metadata_of_file
from entrenar_core.conversion.content import as_it_is
from entrenar_core.conversion.files import write_file
from entrenar_core.conversion.planning import Plan
from entrenar_core.formats import WeightFormat
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from llama_server import real_gguf
from tiny_models import tiny_bert, tiny_llama

NAMES = {WeightFormat.APR: "model.apr", WeightFormat.APR_JSON: "model.apr.json"}


def converted(source: Path, kind: WeightFormat, output: Path, **how: Any) -> Conversion:
    with open_model(parse_reference(str(source))) as model:
        return convert(model, kind, output, **how)


def metadata_of(path: Path) -> dict[str, Any]:
    with open_model(parse_reference(str(path))) as model:
        return dict(model.metadata)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("kind", NAMES)
def test_there_and_back_a_model_has_its_whole_configuration(kind: WeightFormat, bert: Path, tmp_path: Path) -> None:
    converted(bert, kind, tmp_path / NAMES[kind])
    back = converted(tmp_path / NAMES[kind], WeightFormat.SAFETENSORS, tmp_path / "back")
    assert back.files == ("model.safetensors", "config.json")
    assert back.notes == ("the APR file holds no tokenizer: copy its files from the original model, if it has one",), (
        "a WordPiece has no place in it"
    )
    config = json.loads((bert / "config.json").read_text())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config
    loaded, original = (AutoModel.from_pretrained(folder).state_dict() for folder in (tmp_path / "back", bert))
    assert all(original[name].equal(loaded[name]) for name in original)


def test_what_an_apr_has_no_place_for_is_named(bert: Path, tmp_path: Path) -> None:
    (note,) = converted(bert, WeightFormat.APR, tmp_path / "model.apr").notes
    assert "no place for tokenizer.json, tokenizer_config.json" in note
    assert "neither BPE nor Unigram" in note
    llama = tiny_llama(tmp_path / "llama")
    told = converted(llama, WeightFormat.APR, tmp_path / "llama.apr").notes
    assert told == (
        "an APR file has no place for generation_config.json: keep the original",
        "of the tokenizer an APR file holds tokens, merges and scores, and not how text is cut before",
    )
    folder = converted(llama, WeightFormat.APR, tmp_path / "folder")
    assert folder.notes == ()
    assert {"config.json", "tokenizer.json", "generation_config.json"} <= set(folder.files)


def test_that_an_apr_holds_parts_of_a_tokenizer_is_said(tmp_path: Path) -> None:
    converted(tiny_llama(tmp_path / "llama"), WeightFormat.APR, tmp_path / "llama.apr")
    back = converted(tmp_path / "llama.apr", WeightFormat.SAFETENSORS, tmp_path / "back")
    assert back.notes == ("of a tokenizer an APR file holds parts: copy its files from the original model",)


@pytest.mark.parametrize(("merge", "count"), [('["a","b"]', 1_200_000), ('"a b"', 1_200_000)])
def test_a_tokenizer_that_is_too_large_is_left_out(merge: str, count: int, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    start, merges = '{"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[', ",".join([merge] * count)
    (tmp_path / "tokenizer.json").write_text(f"{start}{merges}]}}}}")
    done = converted(tmp_path, WeightFormat.APR, tmp_path / "out" / "model.apr")
    assert done.notes == (
        "the tokenizer is too large to be held in the APR file, and is not kept in it",
        "an APR file has no place for tokenizer.json: keep the original",
    )
    assert "tokenizer.vocabulary" not in metadata_of(tmp_path / "out" / "model.apr")


@pytest.mark.parametrize("pairs", [True, False])
def test_many_merges_are_all_kept_in_their_order(pairs: bool, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    vocab = {f't{number}[,]"\\é🙂': number for number in range(45_001)}
    tokens = list(vocab)
    merges: list[Any] = [[token, tokens[-1]] for token in tokens]
    model = {"type": "BPE", "vocab": vocab, "merges": merges if pairs else [" ".join(merge) for merge in merges]}
    for indent in (None, 2):
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}, indent=indent, ensure_ascii=not indent))
        converted(tmp_path, WeightFormat.APR, tmp_path / "out" / "model.apr", force=True)
        assert metadata_of(tmp_path / "out" / "model.apr")["tokenizer.merges"] == [" ".join(merge) for merge in merges]


def test_a_chat_template_whose_name_is_no_text_is_as_if_absent(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "llama")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    for templates, expected in (
        ([{"name": ["x"], "template": "l"}, {"name": "default", "template": "d"}, {"name": "default"}], "d"),
        ([{"name": ["x"], "template": "l"}, {"name": "default", "template": ["d"]}, "default"], None),
    ):
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
        converted(folder, WeightFormat.APR, tmp_path / "llama.apr", force=True)
        assert metadata_of(tmp_path / "llama.apr").get("chat_template") == expected


def test_an_apr_that_is_cast_tells_its_new_size_and_dtype(bert: Path, tmp_path: Path) -> None:
    converted(bert, WeightFormat.APR, tmp_path / "model.apr")
    converted(tmp_path / "model.apr", WeightFormat.APR, tmp_path / "half.apr", dtype="F16")
    before, after = metadata_of(tmp_path / "model.apr"), metadata_of(tmp_path / "half.apr")
    values = sum(tensor.numel() for tensor in load_file(bert / "model.safetensors").values())
    assert (before["total_size"], after["total_size"]) == (4 * values, 2 * values)
    assert after["param_count"] == before["param_count"] == values
    assert (before["hf_config"]["dtype"], after["hf_config"]["dtype"]) == ("float32", "float16")
    converted(tmp_path / "model.apr", WeightFormat.APR, tmp_path / "same.apr")
    assert (tmp_path / "same.apr").read_bytes() == (tmp_path / "model.apr").read_bytes()


def test_where_the_model_once_lay_is_not_told(bert: Path, tmp_path: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    save_file(load_file(bert / "model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/someone/model"}))
    converted(tmp_path, WeightFormat.APR, tmp_path / "out" / "model.apr")
    assert metadata_of(tmp_path / "out" / "model.apr")["hf_config"] == config


def test_a_configuration_that_is_no_plain_json_is_left_out(bert: Path, tmp_path: Path) -> None:
    config = json.loads((bert / "config.json").read_text())
    save_file(load_file(bert / "model.safetensors"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config, "time_step_limit": [0.0, math.inf]}))
    done = converted(tmp_path, WeightFormat.APR, tmp_path / "out" / "model.apr")
    assert "config.json has numbers that are not finite" in done.notes[0]
    assert "hf_config" not in metadata_of(tmp_path / "out" / "model.apr")


def test_an_apr_of_another_program_is_written_without_configuration(bert: Path, tmp_path: Path) -> None:
    with open_model(parse_reference(str(bert))) as model:
        tensors = [as_it_is(model, tensor) for tensor in model.tensors.values()]
        write_file(tmp_path / "model.apr", WeightFormat.APR, tensors, {"model_type": "bert"})
    done = converted(tmp_path / "model.apr", WeightFormat.SAFETENSORS, tmp_path / "out")
    assert done.files == ("model.safetensors",)
    assert done.notes == ("the APR file holds no config.json: copy it and the tokenizer from the original model",)


@pytest.mark.real_models
def test_the_tokenizer_of_a_gguf_goes_into_an_apr(tmp_path: Path) -> None:
    with open_model(parse_reference(str(real_gguf()))) as model:
        plan = Plan(model, WeightFormat.APR, "BF16")
        found = metadata_of_file(plan, alone=True)
    assert len(found["tokenizer.vocabulary"]) == 49_152
    assert (len(found["tokenizer.merges"]), found["tokenizer.eos_token_id"]) == (48_900, 2)
    assert (found["hf_architecture"], found["hf_config"]["dtype"]) == ("LlamaForCausalLM", "bfloat16")
    assert plan.notes == []
