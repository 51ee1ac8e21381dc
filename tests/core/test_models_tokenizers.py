"""A tokenizer is the model's own, fast, and can pad without a new id."""

import json
from pathlib import Path

import pytest

from entrenar_core.artifact import inspect_folder
from entrenar_core.errors import ModelError
from entrenar_core.models.tokenizers import load_tokenizer
from tiny_models import tiny_llama


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "llama")


def edit(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_the_folders_own_fast_tokenizer_is_loaded(llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer(inspect_folder(llama))
    assert tokenizer.is_fast
    assert tokenizer.decode(tokenizer("the quick fox")["input_ids"]) == "the quick fox"
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer.chat_template
    assert capfd.readouterr() == ("", "")


def test_without_a_pad_token_the_end_of_text_pads_and_nothing_is_added(llama: Path) -> None:
    edit(llama / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(inspect_folder(llama))
    assert tokenizer.pad_token == "</s>"
    assert len(tokenizer) == 320


def test_without_an_end_of_text_the_unknown_token_pads(llama: Path) -> None:
    edit(llama / "tokenizer_config.json", pad_token=None, eos_token=None, unk_token="<s>")
    assert load_tokenizer(inspect_folder(llama)).pad_token == "<s>"


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(llama: Path) -> None:
    edit(llama / "tokenizer_config.json", pad_token=None, eos_token=None)
    with pytest.raises(ModelError, match="no token to pad with"):
        load_tokenizer(inspect_folder(llama))


def test_a_model_without_a_tokenizer_says_so(llama: Path) -> None:
    for file in llama.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="has no tokenizer") as raised:
        load_tokenizer(inspect_folder(llama))
    assert raised.value.hint
    assert "tokenizer.json" in raised.value.hint


def test_a_broken_tokenizer_is_an_error_and_no_traceback(llama: Path) -> None:
    (llama / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": 3}}')
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be loaded"):
        load_tokenizer(inspect_folder(llama))


def test_code_of_a_tokenizer_runs_only_when_trusted(llama: Path) -> None:
    (llama / "own_tokenizer.py").write_text(
        "from transformers import PreTrainedTokenizerFast\nclass Own(PreTrainedTokenizerFast):\n    pass\n"
    )
    code = {"AutoTokenizer": [None, "own_tokenizer.Own"]}
    edit(llama / "tokenizer_config.json", tokenizer_class="Own", auto_map=code)
    artifact = inspect_folder(llama)
    assert type(load_tokenizer(artifact, trust_remote_code=True)).__name__ == "Own"
    with pytest.raises(ModelError, match="custom code") as raised:
        load_tokenizer(artifact)
    assert "`trust_remote_code: true`" in str(raised.value.hint)
