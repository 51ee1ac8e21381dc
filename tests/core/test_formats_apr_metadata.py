"""The metadata of APR files: of real configs and tokenizers, and back."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING

from entrenar_core.architectures import Architecture, architecture_of, families, family_of
from entrenar_core.errors import ModelError
from entrenar_core.formats.apr import read
from entrenar_core.formats.apr_metadata import architecture_of_apr, metadata_of, oddities_of, plain_name
from entrenar_core.formats.apr_writer import write
from entrenar_core.formats.sources import FileSource
from family_models import FURTHER, WANTED
from tiny_models import CHAT_TEMPLATE, CORPUS, tiny_tokenizer

MODEL_TYPES = [model_type for family in families().values() for model_type in family.model_types]
ALIASES = {
    "hidden_dim", "d_model", "n_embd", "num_hidden_layers", "n_layers", "n_layer", "num_attention_heads", "n_heads",
    "n_head", "num_key_value_heads", "n_kv_heads", "n_vocab", "ffn_dim", "intermediate_dim", "n_inner", "max_seq_len",
    "context_length", "n_ctx", "layer_norm_eps", "norm_eps",
}  # fmt: skip


def config_of(model_type: str, **settings: Any) -> dict[str, Any]:
    """As config.json holds it, with the wanted sizes under the names of the family."""
    family = family_of({"model_type": model_type})
    assert family is not None
    sizes = {family.keys[size][0]: value for size, value in WANTED.items() if size != "num_kv_heads"}
    sizes = {family.keys["num_kv_heads"][0]: WANTED["num_kv_heads"]} | sizes
    config: dict[str, Any] = CONFIG_MAPPING[model_type](**sizes, **FURTHER.get(model_type, {}), **settings).to_dict()
    return json.loads(json.dumps(config))  # type: ignore[no-any-return]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_family_goes_into_a_file_and_back(model_type: str, tmp_path: Path) -> None:
    config = config_of(model_type, architectures=["SomeClass"])
    write(tmp_path / "a.apr", [], metadata_of(config, name="org/tiny"))
    with FileSource(tmp_path / "a.apr") as source:
        header = read(source)
    assert header.oddities == ("it holds no tensors",)
    assert not ALIASES & header.metadata.keys()
    assert {key: header.metadata[key] for key in WANTED if key not in ("max_positions", "num_kv_heads")} == {
        key: value for key, value in WANTED.items() if key not in ("max_positions", "num_kv_heads")
    }
    assert header.metadata["max_position_embeddings"] == WANTED["max_positions"]
    assert architecture_of_apr(header.metadata) == architecture_of(config)


def test_a_llama_says_what_programs_need(tmp_path: Path) -> None:
    config = config_of("llama", rms_norm_eps=1e-5, rope_parameters={"rope_theta": 500_000.0, "rope_type": "default"})
    assert metadata_of(config, name="/home/me/secret/tiny", total_size=8, param_count=2) == {
        "model_type": "llama", "name": "tiny", "license": None, "data_source": None, "data_license": None,
        "total_size": 8, "param_count": 2, "architecture": "llama",
        "hidden_size": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6,
        "vocab_size": 131, "intermediate_size": 56, "max_position_embeddings": 96,
        "rope_theta": 500_000.0, "rope_type": 2, "rms_norm_eps": 1e-5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "qwen2", "rope_theta": 1e6}, {"rope_theta": 1e6, "rope_type": 2}),
        ({"model_type": "gpt2", "layer_norm_epsilon": 1e-5}, {"rms_norm_eps": 1e-5}),
        ({"model_type": "bert", "layer_norm_eps": 1e-12}, {"rms_norm_eps": 1e-12}),
        ({"model_type": "llama", "rope_theta": float("inf"), "rms_norm_eps": True}, {"rope_type": 2}),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "rms_norm_eps": 1e-6}},
            {"rope_type": 2, "rms_norm_eps": 1e-6},
        ),
    ],
)
def test_positions_and_norms_are_taken_where_they_are_told(
    config: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    found = metadata_of(config, name="m")
    assert {key: found[key] for key in ("rope_theta", "rope_type", "rms_norm_eps") if key in found} == expected
    assert not oddities_of(found | {"total_size": 0, "param_count": 0})


def test_without_a_config_there_is_little_to_say() -> None:
    assert metadata_of(None, name="line") == {
        "model_type": "", "name": "line", "license": None, "data_source": None, "data_license": None,
    }  # fmt: skip
    assert architecture_of_apr(metadata_of(None, name="line")) == Architecture(None, None)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("org/model-1.5B", "org/model-1.5B"),
        ("./runs/student", "student"),
        ("/home/me/models/", "models"),
        (r"C:\Users\me\model.gguf", "model.gguf"),
        ("https://me:hf_abc@host/org/model?token=hf_abc", "model"),
    ],
)
def test_names_have_no_folders_and_no_tokens(name: str, expected: str) -> None:
    assert plain_name(name) == expected


def test_only_what_apr_has_a_name_for_is_taken() -> None:
    config = config_of("llama") | {"_name_or_path": "/home/me", "token": "hf_abc", "auto_map": {"a": "b"}}
    assert "/home/me" not in json.dumps(metadata_of(config, name="m"))
    assert "hf_abc" not in json.dumps(metadata_of(config, name="m"))


def test_other_programs_names_are_understood() -> None:
    told = {
        "model_type": "transformer_lm", "architecture": "Qwen2", "hf_architecture": "Qwen2ForCausalLM",
        "num_hidden_layers": 3, "n_embd": 8, "n_heads": 4, "n_vocab": 9, "n_inner": 16, "n_ctx": 32, "param_count": 77,
    }  # fmt: skip
    assert architecture_of_apr(told) == Architecture(
        "qwen2", "Qwen2", ("Qwen2ForCausalLM",), 3, 8, 4, 4, 16, 9, 32, num_parameters=77
    )
    assert architecture_of_apr(told, num_parameters=5).num_parameters == 5
    assert architecture_of_apr({"architecture": "gptneox", "hidden_size": "8"}) == Architecture("gpt_neox", "gptneox")


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    tiny_tokenizer(folder)
    return folder


def test_a_bpe_tokenizer_can_be_built_again(bpe: Path) -> None:
    original = Tokenizer.from_file(str(bpe / "tokenizer.json"))
    found = metadata_of(config_of("llama"), name="m", tokenizer=bpe)
    assert found["tokenizer.vocabulary"] == [original.id_to_token(at) for at in range(original.get_vocab_size())]
    assert found["tokenizer.model_type"] == "BPE"
    assert found["chat_template"] == CHAT_TEMPLATE
    ids = {token: at for at, token in enumerate(found["tokenizer.vocabulary"])}
    assert (found["tokenizer.bos_token_id"], found["tokenizer.eos_token_id"]) == (ids["<s>"], ids["</s>"])
    merges = [(left, right) for left, right in (merge.split(" ") for merge in found["tokenizer.merges"])]
    again = Tokenizer(models.BPE(ids, merges))
    again.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in (*CORPUS, "naïve 🙂\n\ttabs"):
        assert again.encode(text).ids == original.encode(text, add_special_tokens=False).ids


def test_a_unigram_tokenizer_can_be_built_again(tmp_path: Path) -> None:
    original = Tokenizer(models.Unigram())
    original.normalizer = normalizers.NFKC()
    original.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    original.train_from_iterator(CORPUS, trainer)
    own = original.get_vocab_size()
    original.add_special_tokens(["<|end|>"])
    original.save(str(tmp_path / "tokenizer.json"))
    found = metadata_of({"vocab_size": own + 3, "eos_token_id": [own, 0]}, name="m", tokenizer=tmp_path)
    pieces = list(zip(found["tokenizer.vocabulary"], found["tokenizer.scores"], strict=True))
    assert pieces[own:] == [("<|end|>", 0.0), (f"[PAD{own + 1}]", -10_000.0), (f"[PAD{own + 2}]", -10_000.0)]
    assert found["tokenizer.eos_token_id"] == own
    assert not {"tokenizer.bos_token_id", "tokenizer.merges", "chat_template"} & found.keys()
    again = Tokenizer(models.Unigram(pieces[:own], unk_id=0))
    again.normalizer, again.pre_tokenizer = original.normalizer, original.pre_tokenizer
    for text in CORPUS:
        assert again.encode(text).ids == original.encode(text).ids


def test_merges_of_older_files_stay_as_they_are(tmp_path: Path) -> None:
    model = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    found = metadata_of(None, name="m", tokenizer=tmp_path)
    assert (found["tokenizer.merges"], found["tokenizer.model_type"]) == (["a b"], "BPE")


def test_other_tokenizers_are_left_out(tmp_path: Path) -> None:
    tiny_tokenizer(tmp_path, kind="wordpiece")
    assert not [key for key in metadata_of(None, name="m", tokenizer=tmp_path) if key.startswith("tokenizer.")]
    (tmp_path / "tokenizer.json").unlink()
    assert not [key for key in metadata_of(None, name="m", tokenizer=tmp_path) if key.startswith("tokenizer.")]


def test_a_template_is_found_in_settings_too(bpe: Path, tmp_path: Path) -> None:
    shutil.copytree(bpe, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink()
    settings = {"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert metadata_of(None, name="m", tokenizer=tmp_path)["chat_template"] == "d"
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "t", "eos_token": {"content": "</s>"}})
    )
    found = metadata_of(None, name="m", tokenizer=tmp_path)
    assert found["chat_template"] == "t"
    assert found["tokenizer.vocabulary"][found["tokenizer.eos_token_id"]] == "</s>"


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ({"type": "BPE", "vocab": {"a": 4_000_000_000}, "merges": []}, "has 1 tokens, and ids up to 4,000,000,000"),
        ({"type": "BPE", "vocab": {"a": -1}, "merges": []}, "no vocabulary of a known form"),
        ({"type": "BPE", "vocab": {"a": "0"}, "merges": []}, "no vocabulary of a known form"),
        ({"type": "BPE", "vocab": [], "merges": []}, "no vocabulary of a known form"),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}, "no vocabulary of a known form"),
        ({"type": "BPE", "vocab": {"a": 0}}, "no vocabulary of a known form"),
        ({"type": "BPE", "vocab": {"a b": 0}, "merges": [["a b", "c"]]}, "merges 'a b' and 'c', which APR cannot hold"),
        ({"type": "Unigram", "vocab": [["a"]]}, "no vocabulary of a known form"),
        ({"type": "Unigram", "vocab": [["a", "x"]]}, "no vocabulary of a known form"),
        ([1], "no vocabulary of a known form"),
        ("BPE", "no vocabulary of a known form"),
    ],
)
def test_a_broken_tokenizer_is_a_model_error(model: Any, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(ModelError, match=complaint) as refused:
        metadata_of(None, name="m", tokenizer=tmp_path)
    assert refused.value.hint


def test_a_template_that_is_no_text_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelError, match="cannot be read"):
        metadata_of(None, name="m", tokenizer=tmp_path)
    with (tmp_path / "chat_template.jinja").open("wb") as file:
        file.truncate(10_000_001)
    with pytest.raises(ModelError, match="too large for a template"):
        metadata_of(None, name="m", tokenizer=tmp_path)
