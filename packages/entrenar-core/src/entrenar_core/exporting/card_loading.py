"""How to load a model, format by format, as its card tells it."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from entrenar_core.architectures import family_of
from entrenar_core.artifact import MODULES
from entrenar_core.errors import ModelError
from entrenar_core.exporting.card import CardFacts
from entrenar_core.exporting.card_files import code
from entrenar_core.formats import read_json

_LOADERS = {
    "text-generation": "AutoModelForCausalLM",
    "fill-mask": "AutoModelForMaskedLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
_CLASSES = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
}
_OF_SENTENCES = ("sentence-similarity", "feature-extraction")


def loading(facts: CardFacts, source: Path, files: Sequence[tuple[str, str]], *, encoder: bool | None = None) -> str:
    """Markdown that loads what was exported from `source`: `files` are the format and the name of each.

    Args:
        encoder: whether the model makes vectors, or scores of classes, and no text; as its config.json says, if None.
    """
    first: dict[str, str] = {}
    for kind, name in files:
        first.setdefault(kind, name)
    sentences = (source / MODULES).is_file() or facts.pipeline_tag in _OF_SENTENCES
    parts = []
    if "safetensors" in first:
        parts.append(_by_sentence_transformers() if sentences else _by_transformers(facts, source))
    if "gguf" in first:
        encodes = _is_encoder(source) if encoder is None else encoder
        parts.append(_by_llama(first["gguf"], encoder=sentences or encodes))
    if "onnx" in first:
        parts.append(_by_onnxruntime(first["onnx"]))
    others = [first[kind] for kind in ("apr", "apr-json") if kind in first]
    parts += [f"`entrenar-inspect info` shows what {code(name)} holds.\n" for name in others]
    return "\n".join(parts)


def _by_transformers(facts: CardFacts, source: Path) -> str:
    loader = _LOADERS.get(facts.pipeline_tag or _task_of(source), "AutoModel")
    return f"""The safetensors are loaded by transformers:

```python
from transformers import AutoTokenizer, {loader}

model = {loader}.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```
"""


def _by_sentence_transformers() -> str:
    return """The safetensors are loaded by sentence-transformers:

```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("path/to/this/folder").encode(["a sentence", "another one"])
```
"""


def _task_of(source: Path) -> str:
    """What the class of the model in a folder is for, in the Hub's words; nothing where that is not told."""
    try:
        classes = read_json(source / "config.json").get("architectures")
    except ModelError:
        return ""
    name = classes[0] if isinstance(classes, list) and classes else None
    return next((task for end, task in _CLASSES.items() if isinstance(name, str) and name.endswith(end)), "")


def _is_encoder(source: Path) -> bool:
    """Whether it makes vectors, or scores of classes, and no text."""
    try:
        family = family_of(read_json(source / "config.json"))
    except ModelError:
        return False
    return family is not None and family.kind == "encoder"


def _by_llama(name: str, *, encoder: bool) -> str:
    command = f"llama-embedding -m {_quoted(name)} -p 'a sentence'" if encoder else f"llama-cli -m {_quoted(name)}"
    return f"""The GGUF is loaded by llama.cpp:

```sh
{command}
```
"""


def _by_onnxruntime(name: str) -> str:
    return f"""The ONNX is loaded by onnxruntime:

```python
import onnxruntime

session = onnxruntime.InferenceSession({_plain(name)!r})
print([(put.name, put.shape) for put in session.get_inputs()])
```
"""


def _plain(name: str) -> str:
    """A file name inside a block of code, which it cannot end."""
    printable = "".join(character if character.isprintable() else " " for character in name)
    return " ".join(printable.split()).replace("`", "'")


def _quoted(name: str) -> str:
    return shlex.quote(_plain(name))
