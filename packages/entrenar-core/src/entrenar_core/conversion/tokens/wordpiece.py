"""The WordPiece of BERT, which a GGUF calls `bert`: a word is cut into the longest pieces that are there.

A GGUF has U+2581 before the pieces that begin a word, where the original has `##` before those that go on with one.

Source: src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp, llm_tokenizer_wpm_session; its options for upper
case and accents are of 2026.
"""

from collections.abc import Mapping
from typing import Any

from entrenar_core.conversion.tokens.deviations import LOWER_CASE, NEW_SIGNS, STRIPPED_MARKS, long_words
from entrenar_core.conversion.tokens.reading import SavedTokenizer
from entrenar_core.conversion.tokens.spaces import SPACE
from entrenar_core.conversion.tokens.vocabulary import Kind, entries_of
from entrenar_core.formats.gguf_values import flag, text

_HINT = "use another format, such as safetensors"
_GOES_ON = "##"
_CASED = "a llama.cpp older than 2026 takes its texts in lower case and without accents, which its tokenizer does not"


def wordpiece(saved: SavedTokenizer, vocab_size: int) -> Kind:
    """What a GGUF holds of a WordPiece.

    Raises:
        ModelError: llama.cpp would cut texts otherwise, or the tokens do not fit the embedding.
    """
    if saved.model["continuing_subword_prefix"] != _GOES_ON:
        raise saved.refused(f"its tokenizer marks pieces otherwise than with {_GOES_ON}, unlike llama.cpp", _HINT)
    cases = _normalizer(saved)
    lower, bare = cases["lowercase"], _strips(cases)
    metadata = {
        "tokenizer.ggml.model": text("bert"),
        "tokenizer.ggml.pre": text("default"),
        **entries_of(saved, vocab_size, spelled=_spelled).metadata(),
        "tokenizer.ggml.normalizer.lowercase": flag(lower),
        "tokenizer.ggml.normalizer.strip_accents": flag(bare),
    }
    deviations = [long_words(saved.model["max_input_chars_per_word"]), NEW_SIGNS]
    if bare:
        deviations.append(STRIPPED_MARKS)
    elif lower:
        deviations.append(LOWER_CASE)
    return Kind(metadata, tuple(deviations), () if lower and bare else (_CASED,), ends_fixed=True)


def _spelled(token: str) -> str:
    rest = token.removeprefix(_GOES_ON)
    if rest == token:
        return SPACE + token
    return token if rest.startswith(SPACE) else rest  # else it would be taken for what begins a word


def _strips(cases: Mapping[str, Any]) -> bool:
    """Accents are left out where it says so; where it says nothing, with lower case."""
    told = cases["strip_accents"]
    return bool(cases["lowercase"] if told is None else told)


def _normalizer(saved: SavedTokenizer) -> Mapping[str, Any]:
    steps = saved.steps("normalizer")
    cuts = [step["type"] for step in saved.steps("pre_tokenizer")]
    if [step["type"] for step in steps] != ["BertNormalizer"] or cuts != ["BertPreTokenizer"]:
        rules = ", ".join([*(step["type"] for step in steps), *cuts]) or "no rule"
        raise saved.refused(f"its tokenizer cuts words by {rules}, and llama.cpp by those of BERT", _HINT)
    cases = steps[0]
    for name in ("clean_text", "handle_chinese_chars"):
        if not cases[name]:
            raise saved.refused(f"its tokenizer has {name} off, which llama.cpp always does", _HINT)
    return cases
