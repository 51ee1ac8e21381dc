"""`compare` of what models say beside their tensors: config.json, the metadata of a GGUF, and tokenizers."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
from tokenizers import Tokenizer

from entrenar_common.output import Block
from entrenar_common.tables import Table, for_terminal
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from entrenar_inspect.comparing import compare
from entrenar_inspect.comparison_views import comparison
from entrenar_inspect.reports.comparison import Comparison, TokenizerDifference
from hub_server import HubServer
from tiny_models import tiny_gguf

Check = Callable[..., dict[str, Any]]


def compared(first: Path | str, second: Path | str, **how: Any) -> Comparison:
    with open_model(parse_reference(str(first))) as one, open_model(parse_reference(str(second))) as other:
        return compare(one, other, **how)


def settings(report: Comparison) -> dict[str | None, tuple[Any, ...]]:
    return {change.key: (change.kind, change.old, change.new) for change in report.settings}


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """A model to be changed, the same as `llama`."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def rewrite(file: Path, change: Callable[[dict[str, Any]], object], **how: Any) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content, **how))


def texts(blocks: list[Block], title: str) -> list[str]:
    """The lines of a table as a terminal of 80 columns has them."""
    table = next(block for block in blocks if isinstance(block, Table) and block.title == title)
    lines = for_terminal(table, 80, colour=False).splitlines()
    assert max(map(len, lines)) <= 80
    return [line.strip() for line in lines]


def test_settings_that_differ_are_told_by_their_keys(llama: Path, copy: Path) -> None:
    old = json.loads((llama / "config.json").read_text())
    changes: Mapping[str, Any] = {
        "hidden_act": "gelu",
        "num_hidden_layers": float(old["num_hidden_layers"]),  # the same number
        "tie_word_embeddings": int(old["tie_word_embeddings"]),  # true is not 1
        "architectures": ["Other"],
        "transformers_version": "0.0",
        "_name_or_path": "elsewhere",
        "id2label": {str(number): "x" for number in range(2)},
        "scaling": {"type": "linear", "by": {"factor": 2.0}},
        "many": list(range(9)),
    }
    rewrite(copy / "config.json", lambda config: config.update(changes))
    rewrite(copy / "config.json", lambda config: config.pop("rms_norm_eps"))
    report = compared(llama, copy)
    assert settings(report) == {
        "hidden_act": ("changed", "silu", "gelu"),
        "tie_word_embeddings": ("changed", old["tie_word_embeddings"], int(old["tie_word_embeddings"])),
        "architectures": ("changed", ["LlamaForCausalLM"], ["Other"]),
        "rms_norm_eps": ("removed", old["rms_norm_eps"], None),
        "scaling.type": ("added", None, "linear"),
        "scaling.by.factor": ("added", None, 2.0),
        "id2label.0": ("added", None, "x"),
        "id2label.1": ("added", None, "x"),
        "many": ("added", None, "array of 9"),
    }
    shown = texts(comparison(report), "Changes of config.json")
    assert "~   hidden_act            silu → gelu" in shown
    assert '~   architectures         ["LlamaForCausalLM"] → ["Other"]' in shown


@pytest.mark.parametrize(("fail_on", "status"), [("any", 1), ("shape", 0), ("value", 0)])
def test_settings_and_tokenizers_are_part_of_any_alone(
    llama: Path, copy: Path, program: Any, fail_on: str, status: int
) -> None:
    assert program(["compare", str(llama), str(copy), "--fail-on", fail_on]) == 0
    rewrite(copy / "config.json", lambda config: config.update(rope_theta=7))
    assert program(["compare", str(llama), str(copy), "--fail-on", fail_on]) == status


def test_a_tokenizer_with_other_tokens_is_told(llama: Path, copy: Path, program: Any) -> None:
    assert compared(llama, copy).tokenizer is None
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.add_tokens(["first", "second"])
    tokenizer.save(str(copy / "tokenizer.json"))
    report = compared(llama, copy)
    assert report.tokenizer == TokenizerDifference(("tokenizer.json",), 2, 0, 0, chat_template=False)
    assert compared(copy, llama).tokenizer == TokenizerDifference(("tokenizer.json",), 0, 2, 0, chat_template=False)
    shown = texts(comparison(report), "Changes of the tokenizer")
    assert "~   tokenizer.json   differs" in shown
    assert "~   tokens           2 added" in shown
    assert program(["compare", str(llama), str(copy), "--fail-on", "any"]) == 1
    assert program(["compare", str(llama), str(copy), "--fail-on", "shape"]) == 0


def test_tokens_with_other_ids_are_counted(llama: Path, copy: Path) -> None:
    def exchange(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        (a, one), (b, two) = list(vocabulary.items())[-2:]
        vocabulary |= {a: two, b: one}

    rewrite(copy / "tokenizer.json", exchange)
    found = compared(llama, copy).tokenizer
    assert found == TokenizerDifference(("tokenizer.json",), 0, 0, 2, chat_template=False)


def test_json_in_another_layout_is_the_same(copy: Path) -> None:
    second = Path(shutil.copytree(copy, copy / "second"))
    for folder in (copy, second):
        (folder / "special_tokens_map.json").write_text('{"a": 1, "b": 2}')
    for name in ("special_tokens_map.json", "tokenizer_config.json", "config.json"):
        rewrite(second / name, lambda _: None, indent=7, sort_keys=True)
    assert (second / "config.json").stat().st_size != (copy / "config.json").stat().st_size
    report = compared(copy, second)
    assert (report.settings, report.tokenizer) == ((), None)
    rewrite(second / "special_tokens_map.json", lambda content: content.update(a=2))
    assert compared(copy, second).tokenizer == TokenizerDifference(
        ("special_tokens_map.json",), 0, 0, 0, chat_template=False
    )


def test_other_merges_are_another_tokenizer(llama: Path, copy: Path) -> None:
    rewrite(copy / "tokenizer.json", lambda content: content["model"]["merges"].pop())
    assert compared(llama, copy).tokenizer == TokenizerDifference(("tokenizer.json",), 0, 0, 0, chat_template=False)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_settings_that_are_broken_are_told(llama: Path, copy: Path, program: Any, name: str, capsys: Any) -> None:
    (copy / name).write_text("{")
    for sides in ((llama, copy), (copy, llama), (copy, copy)):
        assert [(change.file, change.key, change.kind) for change in compared(*sides).settings] == [
            (name, None, "changed")
        ]
    assert program(["compare", str(llama), str(copy), "--fail-on", "any"]) == 1
    assert "cannot be read" in capsys.readouterr().out


def test_chat_templates_are_compared_wherever_they_stand(llama: Path, copy: Path) -> None:
    template = copy / "chat_template.jinja"
    text = template.read_text()
    template.unlink()
    rewrite(copy / "tokenizer_config.json", lambda config: config.update(chat_template=text))
    assert compared(llama, copy).tokenizer is None, "moved to another file"
    template.write_text(text + "!")
    report = compared(llama, copy)
    assert report.tokenizer == TokenizerDifference((), 0, 0, 0, chat_template=True)
    assert report.settings == ()
    assert "~   chat template   differs" in texts(comparison(report), "Changes of the tokenizer")


def test_what_a_folder_lacks_is_told_and_what_a_lone_file_lacks_is_not(
    llama: Path, copy: Path, tmp_path: Path, bert: Path
) -> None:
    for file in copy.glob("*.json"):
        if not file.name.startswith("model."):
            file.unlink()
    (copy / "chat_template.jinja").unlink()
    report = compared(llama, copy)
    assert {(change.file, change.kind) for change in report.settings} == {
        ("config.json", "removed"), ("tokenizer_config.json", "removed"),
    }  # fmt: skip
    assert report.tokenizer is not None
    assert report.tokenizer.files == ("tokenizer.json",)
    (tmp_path / "lone").mkdir()
    lone = Path(shutil.copy(bert / "model.safetensors", tmp_path / "lone/model.safetensors"))
    report = compared(bert, lone, values=True, fail_on="any")
    assert (report.settings, report.tokenizer, report.failed) == ((), None, False)


def test_a_broken_tokenizer_is_another_one(llama: Path, copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    found = compared(llama, copy).tokenizer
    assert found == TokenizerDifference(("tokenizer.json",), None, None, None, chat_template=False)
    rewritten = json.dumps({"model": {"vocab": 3}})
    (copy / "tokenizer.json").write_text(rewritten)
    assert compared(llama, copy).tokenizer == found


def test_a_vocabulary_without_tokenizer_json_is_compared_as_a_file(bert: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, text in zip(folders, ("x\ny\n", "x\nz\n", ""), strict=True):
        folder.mkdir()
        shutil.copy(bert / "model.safetensors", folder)
        if text:
            (folder / "vocab.txt").write_text(text)
    assert compared(folders[0], folders[0]).tokenizer is None
    expected = TokenizerDifference(("vocab.txt",), None, None, None, chat_template=False)
    assert compared(folders[0], folders[1]).tokenizer == expected
    assert compared(folders[0], folders[2]).tokenizer == expected
    assert compared(folders[2], folders[2]).tokenizer is None


@pytest.mark.parametrize("depth", [30, 900, 990, 5000])
def test_settings_may_be_as_deep_as_they_can_be_read(llama: Path, copy: Path, program: Any, depth: int) -> None:
    inner = json.loads((copy / "config.json").read_text())
    for name, last in (("one", 1), ("two", 2)):
        shutil.copytree(copy, copy / name)
        text = json.dumps({**inner, "x": "HERE"}).replace('"HERE"', '{"a":' * depth + str(last) + "}" * depth)
        (copy / name / "config.json").write_text(text)
    assert program(["compare", str(copy / "one"), str(copy / "two"), "--fail-on", "any"]) == 1


def with_metadata(path: Path, tokens: list[str], **more: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(tokens)
    for key, value in more.items():
        name = key.replace("__", ".")
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    writer.add_tensor("output.weight", numpy.zeros((2, 32), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_of_a_gguf(tmp_path: Path) -> None:
    """Arrays by their lengths, and how many of their items are others; those of 1,024 items and more are read, too."""
    tokens = [f"t{number}" for number in range(2000)]
    scores = [0.5] * 2000
    first = with_metadata(tmp_path / "a.gguf", tokens, general__name="one", x__scores=scores, x__few=[1, 2], gone=3)
    second = with_metadata(
        tmp_path / "b.gguf",
        [*tokens[:-1], "new", "newer"],
        general__name="two",
        x__scores=[*scores[:-1], 1.5],
        x__few=[1, 3],
        x__longer=[1.5] * 3000,
        tokenizer__chat_template="{{ x }}",
    )
    report = compared(first, second)
    assert settings(report) == {
        "general.name": ("changed", "one", "two"),
        "x.scores": ("changed", "array of 2,000", "array of 2,000, 1 of them others"),
        "x.few": ("changed", [1, 2], [1, 3]),
        "gone": ("removed", 3, None),
        "x.longer": ("added", None, "array of 3,000"),
    }
    assert {change.file for change in report.settings} == {"GGUF metadata"}
    assert report.tokenizer == TokenizerDifference((), 2, 1, 0, chat_template=True)
    assert "~   general.name   one → two" in texts(comparison(report), "Changes of GGUF metadata")
    assert compared(first, first, values=True, fail_on="any").failed is False


def test_a_gguf_has_other_settings_than_a_folder(tmp_path: Path, llama: Path) -> None:
    report = compared(tiny_gguf(tmp_path / "model.gguf"), llama)
    assert (report.settings, report.tokenizer) == ((), None)
    assert any("settings of its own" in note for note in report.notes)


def test_settings_of_the_hub_are_read_and_its_vocabulary_is_not(
    hub: HubServer, llama: Path, copy: Path, tmp_path: Path
) -> None:
    hub.add("org/one", llama)
    same = compared("org/one", copy)
    assert (same.settings, same.tokenizer) == ((), None)
    rewrite(copy / "config.json", lambda config: config.update(rope_theta=7))
    rewrite(copy / "tokenizer.json", lambda content: content["added_tokens"].pop())
    (copy / "chat_template.jinja").write_text("another")
    report = compared("org/one", copy, fail_on="any")
    assert report.tokenizer == TokenizerDifference(("tokenizer.json",), None, None, None, chat_template=True)
    assert settings(report)["rope_theta"][2] == 7
    assert report.failed
    assert "tokens were not compared" in texts(comparison(report), "Changes of the tokenizer")
    assert "tokenizer_config.json" in hub.fetched()
    assert "tokenizer.json" not in hub.fetched()


def test_in_all_forms(llama: Path, copy: Path, program: Any, check_output: Check) -> None:
    rewrite(copy / "config.json", lambda config: config.update(hidden_act="gelu", extra=None))
    report = check_output(
        program,
        ["compare", str(llama), str(copy)],
        values={"tokenizer": None, "changes": []},
        shows=["Changes of config.json", "silu → gelu"],
        lines=["~\thidden_act\tsilu → gelu", "+\textra\tnull"],
    )
    assert report["settings"][0] == {
        "file": "config.json", "key": "hidden_act", "kind": "changed", "old": "silu", "new": "gelu",
    }  # fmt: skip
