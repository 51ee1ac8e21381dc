"""The chat templates of a folder: in tokenizer_config.json, or in files of their own, which come first.

Source: save_chat_templates of transformers 5, and what the gguf package calls them in a file.
"""

import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from entrenar_core.errors import ModelError
from entrenar_core.formats import read_json
from entrenar_core.formats.gguf_values import Value, text, texts

DEFAULT = "default"
_FILE, _MORE, _OLD_FILE = "chat_template.jinja", "additional_chat_templates", "chat_template.json"
_MAX_BYTES = 10_000_000
_KEY = "tokenizer.chat_template"
_LETTERS = frozenset(string.ascii_letters + string.digits)


def read_templates(folder: Path, settings: Mapping[str, Any]) -> Mapping[str, str]:
    """By name, the usual one being `default`.

    Raises:
        ModelError: a file of one cannot be read, is too large or no text.
    """
    return {**dict(_listed(settings.get("chat_template"))), **dict(_in_files(folder))}


def template_metadata(templates: Mapping[str, str]) -> Mapping[str, Value]:
    """The keys of a GGUF: the usual one, and the names of the others with each of them."""
    named = {_name(name): template for name, template in templates.items() if name != DEFAULT}
    keys = {_KEY: text(templates[DEFAULT])} if DEFAULT in templates else {}
    if named:
        keys |= {f"{_KEY}s": texts(named)} | {f"{_KEY}.{name}": text(template) for name, template in named.items()}
    return keys


def _listed(told: object) -> Iterator[tuple[str, str]]:
    if isinstance(told, str):
        yield DEFAULT, told
    for entry in told if isinstance(told, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str):
            yield entry["name"], entry["template"]


def _in_files(folder: Path) -> Iterator[tuple[str, str]]:
    if (folder / _OLD_FILE).is_file():
        yield from _listed(read_json(folder / _OLD_FILE).get("chat_template"))
    if (folder / _FILE).is_file():
        yield DEFAULT, _text_of(folder / _FILE)
    for file in sorted((folder / _MORE).glob("*.jinja")):
        yield file.stem, _text_of(file)


def _text_of(file: Path) -> str:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise ModelError(f"{file} is too large for a chat template", "fetch or export the model again")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{file} cannot be read: {error}", "fetch or export the model again") from error


def _name(name: str) -> str:
    return "".join(letter if letter in _LETTERS else "_" for letter in name)
