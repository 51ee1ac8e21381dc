r"""How a byte-level tokenizer cuts text into words before it merges, by the name that a GGUF has for it.

`tokenizer.ggml.pre` is a name alone; the expressions behind it are facts of the models' tokenizer.json. Each cuts what
the one before it left: what fits is a word, and so is what lies between two that fit.

Source: src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp, which names them, and for those that it writes in
another form integrations/gguf/gguf_tokenizer_mapping.py of transformers 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Splitting:
    """Regular expressions, in turn. `whole`: a word that is a token is taken before anything is merged."""

    patterns: tuple[str, ...]
    whole: bool = False


_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENDINGS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_ENDINGS}|{_BEFORE}\p{{L}}+|\p{{N}}|{_SIGNS}|{_SPACES}"
_CAMEL = rf"{_BEFORE}{_CAPITALS}*{_SMALL}+%s|{_BEFORE}{_CAPITALS}+{_SMALL}*%s"
_PATHS = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_TEKKEN = rf"{_CAMEL % ('', '')}|\p{{N}}|{_PATHS}"
_GPT4O = rf"{_CAMEL % (_ENDINGS + '?', _ENDINGS + '?')}|\p{{N}}{{1,3}}|{_PATHS}"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", r"\p{N}")

SPLITTINGS: Mapping[str, Splitting] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4"), Splitting((_GPT2,))),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        Splitting((r"\p{N}", _GPT2)),
    ),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2"), Splitting((_LLAMA3,), True)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), Splitting((_LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "stablelm2", "hunyuan"), Splitting((_QWEN2,))),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), Splitting(_DEEPSEEK3)),
    "deepseek-coder": Splitting(_DEEPSEEK_CODER),
    "tekken": Splitting((_TEKKEN,), True),
    **dict.fromkeys(("gpt-4o", "llama4"), Splitting((_GPT4O,))),
}
"""What is known, by the name in a GGUF."""
BEGINS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "tekken")
"""Those whose texts begin with the first token where a file does not say whether."""
