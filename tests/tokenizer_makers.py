"""Small tokenizers of every kind, trained with the tokenizers library and written as folders that transformers loads.

Each function writes tokenizer.json and tokenizer_config.json into a folder and returns it. Trained on the trial texts
and on prose of this file's own, so that their scripts have tokens of more than one letter.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from entrenar_core.conversion.gguf_splits import SPLITTINGS
from entrenar_core.conversion.tokens import TRIAL_TEXTS
from entrenar_core.conversion.tokens.unigram import single

SPACE = "\u2581"
SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
OCTETS = tuple(f"<0x{number:02X}>" for number in range(256))
CORPUS = (
    "the quick brown fox jumps over the lazy dog and runs away from the river, the hills and the other animals",
    "there is nothing that the student learns faster than what the teacher shows with soft targets and examples",
    "open the file, read every line of it, count the words in it, and write the result into another folder",
    *TRIAL_TEXTS,
)
ROLES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def save(tokenizer: Tokenizer, folder: Path, settings: Mapping[str, Any]) -> Path:
    """Both files, so that transformers takes the tokenizer as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def ends(tokenizer: Tokenizer, first: str | None, last: str | None = None) -> None:
    """Puts tokens at the ends of a text."""
    single = [*([first] if first else []), "$A", *([last] if last else [])]
    named = [(token, tokenizer.token_to_id(token)) for token in (first, last) if token]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=[*single, "$B"], special_tokens=named)


def byte_level(
    folder: Path,
    *,
    pre: str = "gpt-2",
    texts: Iterable[str] = CORPUS,
    vocab_size: int = 600,
    specials: Sequence[str] = SPECIALS[1:],
    first: str | None = None,
    normalizer: Any = None,
    ignore_merges: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """The byte-level BPE of GPT-2 and others; `pre` is llama.cpp's name for how words are cut."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    patterns = SPLITTINGS[pre].patterns
    if pre == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif pre == "smollm":
        cuts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    else:
        split = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
        spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, spelled])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if first:
        ends(tokenizer, first)
    roles = {role: token for role, token in ROLES.items() if token in specials}
    return save(tokenizer, folder, {**roles, **(settings or {})})


def sentence_piece(
    folder: Path,
    *,
    spaces: str = "prepend",
    complete: bool = True,
    texts: Iterable[str] = CORPUS,
    vocab_size: int = 900,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """The BPE of SentencePiece's form, with bytes to fall back on, which begins a text with <s>.

    Args:
        spaces: `prepend` puts a space before each piece of a text, as Llama 2 does, `first` before the first one, as
            newer ones do, and `never` none, as Gemma does.
        complete: every cut of a token into two others is a merge, as where SentencePiece made the tokens; else only
            the merge that training found is.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", SPACE)
    trained.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    wanted = vocab_size - len(SPECIALS) - len(OCTETS)
    lines = [line for text in texts for line in text.splitlines()]
    trained.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=wanted, show_progress=False, max_token_length=12))
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [tuple(merge) for merge in model["merges"]]
    if complete:
        merges = every_merge(merges, pieces)
    ids = {token: id_ for id_, token in enumerate(dict.fromkeys([*SPECIALS, *OCTETS, *pieces]))}
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if spaces == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    elif spaces == "never":
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=spaces, split=False)
    tokenizer.decoder = decoders.Sequence(back if spaces == "never" else [*back, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    ends(tokenizer, "<s>")
    return save(tokenizer, folder, {**ROLES, **(settings or {})})


def every_merge(merges: Sequence[tuple[str, str]], pieces: Sequence[str]) -> list[tuple[str, str]]:
    """Every cut of each token into two others, in the order in which the tokens were first made."""
    known = set(pieces)
    made = dict.fromkeys(left + right for left, right in merges)
    return [
        (token[:at], token[at:])
        for token in made
        for at in range(1, len(token))
        if token[:at] in known and token[at:] in known
    ]


def unigram(
    folder: Path,
    *,
    texts: Iterable[str] = CORPUS,
    vocab_size: int = 600,
    first: str | None = None,
    joined: bool = True,
    replacements: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """The Unigram of SentencePiece, which ends a text with </s>. Its scores have 32 bits, as SentencePiece's do.

    Args:
        joined: several spaces are one, and none is left at the end of a text.
        replacements: what a compiled table puts for what; without any there is no table.
    """
    tokenizer = Tokenizer(models.Unigram())
    steps = [normalizers.Precompiled(table(replacements))] if replacements else []
    if joined:
        steps += [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), SPACE)]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIALS), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    content["model"]["vocab"] = [(piece, single(score)) for piece, score in content["model"]["vocab"]]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    ends(tokenizer, first, "</s>")
    return save(tokenizer, folder, {**ROLES, **(settings or {})})


def table(replacements: Mapping[str, str]) -> bytes:
    """A table of normalisation as SentencePiece compiles it: a double array of 32-bit units, and the new texts.

    A unit has the letter that leads to it, bit 8 if something ends there, and above bit 10 what to XOR its place with
    to get to the places of what follows.
    """
    texts, places = b"", {}
    for old, new in replacements.items():
        places[old.encode()] = len(texts)
        texts += new.encode() + b"\0"
    units = {0: 0}
    free = 1

    def place(node: int, prefix: bytes) -> None:
        nonlocal free
        letters = sorted({key[len(prefix)] for key in places if key.startswith(prefix) and len(key) > len(prefix)})
        base, free = free * 256, free + 1
        units[node] |= (node ^ base) << 10
        if prefix in places:
            units[node] |= 1 << 8
            units[base] = places[prefix] | 1 << 31
        for letter in letters:
            units[base ^ letter] = letter
            place(base ^ letter, prefix + bytes([letter]))

    place(0, b"")
    array = b"".join(units.get(at, 0).to_bytes(4, "little") for at in range(free * 256))
    return len(array).to_bytes(4, "little") + array + texts


def wordpiece(
    folder: Path,
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    texts: Iterable[str] = CORPUS,
    vocab_size: int = 900,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """The WordPiece of BERT, with [CLS] before and [SEP] behind a text."""
    specials = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(specials.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends(tokenizer, "[CLS]", "[SEP]")
    return save(tokenizer, folder, {**{f"{role}_token": text for role, text in specials.items()}, **(settings or {})})
