"""The tokenizer of a GGUF, built of its metadata: id by id what llama.cpp and transformers make of the same file."""

import ctypes
import json
import random
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from entrenar_core.conversion.gguf_splits import SPLITTINGS
from entrenar_core.conversion.gguf_tokenizer import write_tokenizer
from llama_server import real_gguf

# Tokenizes with llama.cpp's own library, of a file's vocabulary alone. That flag is the first of the booleans.
_LLAMA_CPP = """
import ctypes, glob, json, sys
lib = ctypes.CDLL(glob.glob(sys.argv[1] + "/*.so")[0])
class Parameters(ctypes.Structure):
    _fields_ = [("pointers", ctypes.c_ubyte * 72), ("flags", ctypes.c_bool * 8)]
class Opaque(ctypes.c_void_p):
    pass
log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
lib.llama_log_set(log, None)
lib.llama_backend_init()
lib.llama_model_default_params.restype = Parameters
lib.llama_model_load_from_file.restype = lib.llama_model_get_vocab.restype = Opaque
parameters = lib.llama_model_default_params()
assert list(parameters.flags)[:3] == [False, False, True], "llama.cpp has other parameters now"
parameters.flags[0] = True
job = json.load(sys.stdin)
for path in job["paths"]:
    vocabulary = lib.llama_model_get_vocab(lib.llama_model_load_from_file(path.encode(), parameters))
    found = []
    for text in job["texts"]:
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + 8))()
        count = lib.llama_tokenize(vocabulary, raw, len(raw), ids, len(ids), job["ends"], True)
        found.append(ids[:count])
    print(json.dumps(found))
"""
WITHOUT_MARKS = ("tekken", "gpt-4o")  # llama.cpp's form of these takes combining marks for signs
ONE_OF_EACH = ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "deepseek-v3", "deepseek-coder", "tekken", "gpt-4o")
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<think>")
TEXTS = (
    "Hello world, it's 2024-01-01! 12345 x 67890 3.14159, and 1,234,567.89 more",
    "def f(x):\n    return x**2  # комментарий\n\n\n\t\tif a != b:\r\n  pass\r\n",
    "   leading and   trailing   ", "naïve café Straße ŁÓDŹ İstanbul", "I'LL we'Re don'T 'tis it’s",
    "日本語のテキスト 한국어 中文字符，。！ ภาษาไทย हिन्दी ١٢٣٤ 一二三", "👍🏽 emoji 👨‍👩‍👧 ①②③ ½ ² Ⅷ 𝔘𝔫𝔦 𐍈",
    "<|im_start|>user\nHi <think>why</think></s>", "a\u00a0b\u2003c\u3000d\x85e \u200bzero\u200dwidth\ufeff",
    "CamelCaseXMLHttpRequest snake_case kebab-case /usr/local/bin\n//x", "e\u0301 n\u0303 ǅ ʰ ª", "\n\n \n  \n\t x",
    "!!!???...,,,;;;(((", " ", "\n", "x", "",
)  # fmt: skip


def texts_at_random(count: int) -> list[str]:
    """Of signs of many scripts, and of white space."""
    draw = random.Random(0)
    starts = (32, 32, 65, 9, 160, 0x370, 0x900, 0x2000, 0x3040, 0x4E00, 0xAC00, 0x1F600)
    signs = [chr(start + more) for start in starts for more in range(60)]
    kept = [sign for sign in signs if unicodedata.category(sign) != "Cn"] + [" ", "\n", "\r\n", "\t"] * 15
    return ["".join(draw.choices(kept, k=draw.randint(1, 40))) for _ in range(count)]


def by_llama_cpp(paths: Sequence[Path], texts: Sequence[str], *, ends: bool = False) -> list[list[list[int]]]:
    spec = find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("xllamacpp is not installed; `make setup` brings it")
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    job = json.dumps({"paths": list(map(str, paths)), "texts": list(texts), "ends": ends})
    command = [sys.executable, "-c", _LLAMA_CPP, spec.submodule_search_locations[0]]
    done = subprocess.run(command, input=job, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def written(path: Path, kind: str, tokens: Sequence[str], types: Sequence[int], **more: Any) -> Path:
    """A GGUF that has a vocabulary and nothing else."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_tokenizer_model(kind)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(types))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in more.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def trained(*, byte_level: bool) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens by id and merges of a BPE over this file's text and the texts above."""
    tokenizer = Tokenizer(models.BPE())
    alphabet: list[str] = []
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*Path(__file__).read_text("utf-8").splitlines(keepends=True), *TEXTS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return [token for token, _ in sorted(model["vocab"].items(), key=lambda pair: pair[1])], model["merges"]


TYPES = (gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 3, gguf.TokenType.USER_DEFINED)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pre")
    tokens, merges = trained(byte_level=True)
    types = [*TYPES, *[gguf.TokenType.NORMAL] * (len(tokens) - len(TYPES))]
    lines = [" ".join(merge) for merge in merges]
    return {
        pre: written(folder / f"{pre}.gguf", "gpt2", tokens, types, token_merges=lines, tokenizer_pre=pre)
        for pre in ONE_OF_EACH
    }


@pytest.fixture(scope="module")
def sentence_piece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As convert_hf_to_gguf.py writes one: what is merged later has a lower score, and each byte has a token."""
    bare, _ = trained(byte_level=False)
    rest = bare[len(SPECIAL) :]
    octets = [f"<0x{number:02X}>" for number in range(256)]
    types = [*TYPES, *[gguf.TokenType.BYTE] * 256, *[gguf.TokenType.NORMAL] * len(rest)]
    scores = [0.0] * (len(TYPES) + 256) + [-float(place) for place in range(len(rest))]
    path = tmp_path_factory.mktemp("spm") / "spm.gguf"
    return written(path, "llama", [*SPECIAL, *octets, *rest], types, token_scores=scores)


def test_every_splitting_is_tried_here() -> None:
    assert {SPLITTINGS[pre] for pre in ONE_OF_EACH} == set(SPLITTINGS.values())


def test_words_are_cut_and_merged_as_by_llama_cpp(byte_level: dict[str, Path], tmp_path: Path) -> None:
    texts = [*TEXTS, *texts_at_random(150)]
    expected = by_llama_cpp(list(byte_level.values()), texts)
    assert len({json.dumps(ids) for ids in expected}) > len(byte_level) / 2, "the names make a difference"
    for path, ids in zip(byte_level.values(), expected, strict=True):
        assert write_tokenizer(path, tmp_path).notes == ()
        found = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        told = [
            (found.encode(text, add_special_tokens=False).ids, expected)
            for text, expected in zip(texts, ids, strict=True)
            if text.isascii() or path.stem not in WITHOUT_MARKS
        ]
        assert all(ours == theirs for ours, theirs in told), path.name
        assert len(told) > 10


def test_words_are_cut_and_merged_as_by_transformers(byte_level: dict[str, Path], tmp_path: Path) -> None:
    texts = [*TEXTS, *texts_at_random(150)]
    known = [path for pre, path in byte_level.items() if pre in GGUF_PRE_TOKENIZER_SPLITS]
    assert {path.stem for path in known} >= set(WITHOUT_MARKS)
    for path in known:
        write_tokenizer(path, tmp_path)
        found = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        architecture, said, _ = get_gguf_tokenizer(str(path))
        theirs, _ = convert_gguf_tokenizer(architecture, said)
        for text in texts:
            assert found.encode(text, add_special_tokens=False).ids == theirs.encode(text).ids, path.name


def test_sentence_piece_is_merged_by_its_scores_as_by_llama_cpp(sentence_piece: Path, tmp_path: Path) -> None:
    texts = [text for text in (*TEXTS, *texts_at_random(150)) if text]
    (expected,) = by_llama_cpp([sentence_piece], texts)
    assert write_tokenizer(sentence_piece, tmp_path).notes == ()
    found = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [found.encode(text, add_special_tokens=False).ids for text in texts] == expected
    plain = [text for text in texts if "<" not in text]  # a space is put behind tokens of control too
    assert [found.decode(found.encode(text, add_special_tokens=False).ids) for text in plain] == plain


def test_texts_begin_as_with_llama_cpp(byte_level: dict[str, Path], sentence_piece: Path, tmp_path: Path) -> None:
    """Where the file does not say so, the kind of the tokenizer does."""
    paths = [byte_level["smollm"], byte_level["llama-bpe"], byte_level["tekken"], sentence_piece]
    expected = by_llama_cpp(paths, ["the quick fox"], ends=True)
    for path, (ids,), first in zip(paths, expected, (False, True, True, True), strict=True):
        write_tokenizer(path, tmp_path)
        assert (ids[0] == 1) == first
        assert AutoTokenizer.from_pretrained(tmp_path)("the quick fox")["input_ids"] == ids


def test_transformers_loads_what_the_file_says(byte_level: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tokens, merges = trained(byte_level=True)
    types = [*TYPES, *[gguf.TokenType.NORMAL] * (len(tokens) - len(TYPES))]
    templates = [{"name": "default", "template": "{{ messages[0].content }}"}, {"name": "tool", "template": "tool"}]
    more = {"add_bos_token": True, "add_eos_token": True, "pad_token_id": 2, "chat_template": templates}
    lines = [" ".join(merge) for merge in merges]
    written(path, "gpt2", tokens, types, token_merges=lines, tokenizer_pre="qwen2", **more)
    write_tokenizer(path, tmp_path)
    found = AutoTokenizer.from_pretrained(tmp_path)
    assert (found.bos_token, found.eos_token, found.unk_token, found.pad_token) == ("<s>", "</s>", "<unk>", "</s>")
    assert found.model_max_length == 512
    ids = found("abc")["input_ids"]
    assert (ids[0], ids[-1]) == (1, 2)
    pair = found("abc", "abc")["input_ids"]
    assert pair == [*ids, *ids]
    assert found.decode(ids, skip_special_tokens=True) == "abc"
    assert found.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert found.get_chat_template("tool") == "tool"


@pytest.mark.parametrize(
    ("kind", "more", "note"),
    [
        ("gpt2", {"tokenizer_pre": "of-tomorrow"}, "how its tokenizer cuts words is called of-tomorrow"),
        ("rwkv", {}, "its tokenizer is of the kind rwkv"),
    ],
)
def test_what_is_not_known_is_left_to_transformers_and_its_reasons_are_told(
    kind: str, more: dict[str, Any], note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "transformers.py"  # what the program imports first
    broken.write_text("raise ImportError('nothing of this kind')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    path = written(tmp_path / "odd.gguf", kind, ["<unk>", "a"], [2, 1], **more)
    done = write_tokenizer(path, tmp_path)
    assert done.files == ()
    assert note in done.notes[0]
    assert "ImportError: nothing of this kind" in done.notes[0]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["odd.gguf", "transformers.py"]


@pytest.mark.parametrize(
    ("kind", "tokens", "more", "note"),
    [
        ("gpt2", ["<unk>", "a"], {"token_merges": ["a b"]}, "its vocabulary is not sound"),
        ("gpt2", ["<unk>", "a"], {"token_merges": ["ab"]}, "its vocabulary is not sound"),
        ("gpt2", ["<unk>", "a", "a"], {"token_merges": ["a b"]}, "a token comes twice"),
        ("llama", ["<unk>", "a"], {}, "its vocabulary is not sound"),
        ("llama", ["<unk>", "a" * 600], {"token_scores": [0.0, 0.0]}, "a token of more than 512 letters"),
        ("llama", ["<unk>", "a", "b"], {"token_scores": [0.0] * 3}, "more tokens than types of tokens, or fewer"),
        ("llama", [], {}, "the file has no tokenizer"),
    ],
)
def test_of_a_vocabulary_that_is_not_sound_no_tokenizer_is_made(
    kind: str, tokens: list[str], more: dict[str, Any], note: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "odd.gguf", kind, tokens, [2, 1, 1][: 2 if "types" in note else len(tokens)], **more,
                   tokenizer_pre="gpt-2")  # fmt: skip
    done = write_tokenizer(path, tmp_path)
    assert (done.files, len(done.notes)) == ((), 1)
    assert note in done.notes[0]
    assert "copy one from the original model" in done.notes[0]


@pytest.mark.real_models
@pytest.mark.nightly
def test_transformers_makes_what_is_not_known_here(tmp_path: Path) -> None:
    tokens, merges = trained(byte_level=True)
    types = [*TYPES, *[gguf.TokenType.NORMAL] * (len(tokens) - len(TYPES))]
    lines = [" ".join(merge) for merge in merges]
    path = written(tmp_path / "m.gguf", "gpt2", tokens, types, token_merges=lines, tokenizer_pre="of-tomorrow")
    done = write_tokenizer(path, tmp_path)
    assert "tokenizer.json" in done.files
    assert done.notes == (
        "transformers made the tokenizer, since how its tokenizer cuts words is called of-tomorrow, "
        "which is not known here",
    )
    found = AutoTokenizer.from_pretrained(tmp_path).get_vocab()
    assert [found[token] for token in tokens] == list(range(len(tokens)))


@pytest.mark.real_models
def test_of_a_real_model_it_is_llama_cpps(tmp_path: Path) -> None:
    path = real_gguf()
    texts = [*TEXTS, *texts_at_random(300), Path(random.__file__).read_text("utf-8")]
    (expected,) = by_llama_cpp([path], texts)
    assert write_tokenizer(path, tmp_path).files == ("tokenizer.json", "tokenizer_config.json")
    found = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [found.encode(text, add_special_tokens=False).ids for text in texts] == expected


@pytest.mark.real_models
@pytest.mark.nightly
def test_of_a_real_model_transformers_makes_the_same_but_for_digits(tmp_path: Path) -> None:
    """Its own reader does not know that SmolLM cuts numbers into digits, as its tokenizer.json and llama.cpp do."""
    path = real_gguf()
    write_tokenizer(path, tmp_path)
    ours = AutoTokenizer.from_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    texts = [text for text in (*TEXTS, *texts_at_random(300)) if not any(sign.isnumeric() for sign in text)]
    assert [ours(text)["input_ids"] for text in texts] == [theirs(text)["input_ids"] for text in texts]
    assert ours.get_vocab() == theirs.get_vocab()
    assert set(ours.all_special_tokens) == set(theirs.all_special_tokens)
    chat = [{"role": "user", "content": "What is 7 times 8?"}]
    assert ours.apply_chat_template(chat, tokenize=False) == theirs.apply_chat_template(chat, tokenize=False)
