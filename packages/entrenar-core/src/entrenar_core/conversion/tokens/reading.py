"""A tokenizer as it lies in a folder: what the tokenizers library reads of tokenizer.json, and what stands beside it.

tokenizer.json is what counts, and not what transformers makes of it: transformers 5 builds the tokenizers of some
classes anew by its own rules, and then cuts digits otherwise than the file and every other program do. Where there is
only an older form (vocab.txt, vocab.json with merges.txt, tokenizer.model), transformers makes tokenizer.json of it.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar_core.artifact import TOKENIZERS
from entrenar_core.conversion.tokens.templates import read_templates
from entrenar_core.errors import ModelError
from entrenar_core.formats import read_json
from entrenar_core.formats.choosing import most_bytes
from entrenar_core.formats.json_texts import is_half

if TYPE_CHECKING:
    from tokenizers import Tokenizer

JSON, SETTINGS, ROLES_FILE = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
_AGAIN = "fetch or export the model again"
_MAKE = f"with transformers, AutoTokenizer.from_pretrained(folder).save_pretrained(folder) makes {JSON} of it"


_MOST_IDS = 4_000_000


@dataclass(frozen=True, slots=True)
class SavedTokenizer:
    """A tokenizer: `content` is its tokenizer.json, in the form that the library itself writes, `settings` is
    tokenizer_config.json, and `templates` are the chat templates by name, the usual one being `default`.

    `library` neither pads nor truncates. `folder` is where all of it was found, and what errors call it.
    """

    folder: Path
    content: Mapping[str, Any]
    settings: Mapping[str, Any]
    templates: Mapping[str, str]
    library: "Tokenizer"

    @property
    def model(self) -> Mapping[str, Any]:
        """What makes tokens of words: its `type` and its rules."""
        model: Mapping[str, Any] = self.content["model"]
        return model

    @property
    def added(self) -> Mapping[int, Mapping[str, Any]]:
        """What is found whole in a text, by id."""
        return {entry["id"]: entry for entry in self.content["added_tokens"]}

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The tokens of the model, without what was added."""
        return self.library.get_vocab(with_added_tokens=False)

    def steps(self, part: str) -> tuple[Mapping[str, Any], ...]:
        """What `normalizer` or `pre_tokenizer` does, one after the other."""
        return tuple(_flat(self.content[part]))

    def token(self, role: str) -> str | None:
        """The token of a role, such as `bos`, if its settings name one."""
        return _text(self.settings.get(f"{role}_token"))

    def refused(self, why: str, hint: str) -> ModelError:
        """The error that says why llama.cpp could not cut texts as this tokenizer does."""
        return ModelError(f"{self.folder}: {why}", hint)


def read_tokenizer(folder: Path) -> SavedTokenizer:
    """The tokenizer in a folder. Nothing of a model is executed, and nothing is downloaded.

    Raises:
        ModelError: there is none, it is broken, or transformers makes no tokenizer.json of its older form.
    """
    if (folder / JSON).is_file():
        return _read(folder, folder)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise ModelError(f"{folder} has no tokenizer", f"put {JSON} and {SETTINGS} beside the weights of the model")
    with tempfile.TemporaryDirectory() as made:
        _make_json(folder, Path(made))
        return _read(Path(made), folder)


@contextmanager
def panics_told(folder: Path) -> Iterator[None]:
    """Turns a panic of the tokenizers library, which is no Exception and has no name to import, into a ModelError; what
    the library itself prints then, where in its own code it was, is left out.
    """
    try:
        with _silent():
            yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"the tokenizer of {folder} is broken: {error}", _AGAIN) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing that is written to the file of stderr comes through: a library that is not Python's knows no other."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _make_json(folder: Path, target: Path) -> None:
    from entrenar_core.models.quiet import explaining

    with explaining("tokenizer", folder, _MAKE):
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False).save_pretrained(target)
    if not (target / JSON).is_file():
        raise ModelError(f"transformers makes no {JSON} of the tokenizer in {folder}", _MAKE)


def _read(place: Path, folder: Path) -> SavedTokenizer:
    """The files lie at `place`, and are called by `folder`."""
    library = _load(place / JSON, folder)
    settings = {**_object(place / ROLES_FILE, folder), **_object(place / SETTINGS, folder)}
    content = json.loads(library.to_str())
    saved = SavedTokenizer(folder, content, settings, read_templates(place, settings), library)
    _require_agreement(saved)
    return saved


def _load(file: Path, folder: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        if file.stat().st_size > most_bytes(JSON):
            raise ModelError(f"{folder / JSON} is too large for a tokenizer", _AGAIN)
        _require_harmless(file, folder)
        with panics_told(folder):
            tokenizer = Tokenizer.from_file(str(file))
    except ModelError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{folder / JSON} cannot be loaded: {error}", _AGAIN) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _require_harmless(file: Path, folder: Path) -> None:
    """Refuses what the library ends the process at, or takes gigabytes for, before it reads the file."""
    content = read_json(file)
    model = content.get("model")
    parts = model if isinstance(model, Mapping) else {}
    if parts.get("type") == "BPE" and (parts.get("continuing_subword_prefix") or parts.get("end_of_word_suffix")):
        raise ModelError(
            f"{folder}: the parts of its words have a prefix or suffix, which llama.cpp does not know", _MAKE
        )
    vocabulary = parts.get("vocab")
    ids = [id_ for id_ in vocabulary.values() if isinstance(id_, int)] if isinstance(vocabulary, Mapping) else []
    highest = max(ids, default=0)
    if highest > _MOST_IDS:
        raise ModelError(f"{folder / JSON} has a token of the id {highest:,}, beyond any vocabulary", _AGAIN)
    if len(set(ids)) < len(ids):
        raise ModelError(f"{folder / JSON} gives two tokens one id", _AGAIN)


def _object(file: Path, folder: Path) -> Mapping[str, Any]:
    """Settings, in which every string is text: the library takes no half of a character."""
    found = read_json(file) if file.is_file() else {}
    if is_half(json.dumps(found, ensure_ascii=False)):
        raise ModelError(f"{folder / file.name} has half of a character in a text", _AGAIN)
    return found


def _require_agreement(saved: SavedTokenizer) -> None:
    """Older files may name tokens beside the tokenizer.json, which only transformers then adds."""
    named = saved.settings.get("added_tokens_decoder")
    for id_, entry in named.items() if isinstance(named, dict) else ():
        text = _text(entry)
        if text is not None and str(saved.library.token_to_id(text)) != id_:
            raise saved.refused(f"its {SETTINGS} gives {text!r} the id {id_}, and its {JSON} does not", _MAKE)


def _text(token: object) -> str | None:
    """A token is written as itself, or with how it is matched."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) and text else None


def _flat(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for step in part.get("normalizers") or part.get("pretokenizers") or ():
        yield from _flat(step)
