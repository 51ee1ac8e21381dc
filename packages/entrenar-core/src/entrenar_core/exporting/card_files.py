"""README.md as a model card: YAML between two lines of `---`, then Markdown.

A card that comes with a model was written by a stranger. Its front matter is read within bounds, as texts and lists and
nothing else, so that `no` stays a language; what is taken over from it is escaped where it goes.

Source: huggingface.co/docs/hub/model-cards.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"
MAX_CARD_BYTES = 4_000_000
MAX_FRONT_CHARACTERS = 200_000
_MAX_TEXT = 300
_MAX_ITEMS = 100
_MAX_DEPTH = 20
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_FENCE = re.compile(r"---[ \t]*")
_KEY = re.compile(r"(?P<quote>['\"]?)(?P<key>[A-Za-z_][\w.-]*)(?P=quote)[ \t]*:(?:\s|$)")
_LOCAL = re.compile(r"(?<![\w:/.~])(?:~|/[\w.+@-]+)(?:/[^\s/'\"`|,;()<>\[\]{}]+)+/?")
_SPECIAL = re.compile(r"([\\`*\[\]<>|])")


@dataclass(frozen=True, slots=True)
class CardFile:
    """A card in two parts. `values` is what its front matter says, empty where that is none or cannot be read."""

    front: str
    body: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def texts(self, key: str) -> tuple[str, ...]:
        """What a key lists, or its one text; what is neither is left out."""
        value = self.values.get(key)
        found = value if isinstance(value, list) else [value]
        plain = [" ".join(item.split()) for item in found[:_MAX_ITEMS] if isinstance(item, str)]
        return tuple(dict.fromkeys(item for item in plain if item.isprintable() and 0 < len(item) <= _MAX_TEXT))

    def text(self, key: str) -> str | None:
        """What a key says, None where it says nothing or a list."""
        found = self.texts(key)
        return None if isinstance(self.values.get(key), list) or not found else found[0]


def read_card(folder: Path) -> CardFile | None:
    """The card of a folder; None where it has none that can be read."""
    try:
        with (folder / CARD).open("rb") as stream:
            data = stream.read(MAX_CARD_BYTES + 1)
    except OSError:
        return None
    return None if len(data) > MAX_CARD_BYTES else parse_card(data.decode("utf-8", errors="replace"))


def parse_card(text: str) -> CardFile:
    """A card from its text. One whose front matter never ends or is no mapping of keys is all body."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    lines = text.split("\n")
    if not _FENCE.fullmatch(lines[0]):
        return CardFile("", text)
    end = next((place for place, line in enumerate(lines[1:], 1) if _FENCE.fullmatch(line)), None)
    if end is None:
        return CardFile("", text)
    front = "".join(f"{line}\n" for line in lines[1:end])
    values = _values(front)
    if values is None:
        return CardFile("", text)
    return CardFile(front, "\n".join(lines[end + 1 :]), values)


def _values(front: str) -> Mapping[str, Any] | None:
    if len(front) > MAX_FRONT_CHARACTERS:
        return None
    with suppress(yaml.YAMLError, ValueError):
        if not _is_plain(front):
            return None
        found = yaml.load(front, _LOADER)
        if found in (None, ""):
            return {}
        if isinstance(found, dict):
            return {key: value for key, value in found.items() if isinstance(key, str)}
    return None


def _is_plain(front: str) -> bool:
    """Whether YAML nests no deeper than a card does and names no types of its own, such as Python's."""
    depth = 0
    for event in yaml.parse(front, _LOADER):
        if getattr(event, "tag", None) is not None or depth > _MAX_DEPTH:
            return False
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return True


def with_values(card: CardFile, values: Mapping[str, Any]) -> CardFile:
    """The card with these keys of its front matter said anew, or no more where they are None; all other lines stay as
    they are.
    """
    said = front_matter(values)
    kept = "".join(_without(card.front, values))
    others = {key: value for key, value in card.values.items() if key not in values}
    changed = CardFile(f"{said}{kept}", card.body, {**others, **(_values(said) or {})})
    if _values(changed.front) == changed.values:
        return changed
    # What was written there does not fall apart into lines of keys, such as one mapping in braces.
    return CardFile(f"{said}{_laid_out(card.front, values)}", card.body, changed.values)


def _without(front: str, values: Mapping[str, Any]) -> Sequence[str]:
    kept, leaving = [], False
    for line in front.splitlines(keepends=True):
        key = _KEY.match(line)
        if key is not None:
            leaving = key["key"] in values
        elif line.strip() and not line.startswith((" ", "\t", "-")):
            leaving = False
        if not leaving:
            kept.append(line)
    return kept


def _laid_out(front: str, but: Mapping[str, Any]) -> str:
    """The same keys, each on lines of its own, without some of them."""
    node = yaml.compose(front, yaml.BaseLoader)
    if not isinstance(node, yaml.MappingNode):
        return ""
    node.value = [(key, value) for key, value in node.value if key.value not in but]
    node.flow_style = False
    return yaml.serialize(node, Dumper=yaml.BaseDumper, allow_unicode=True, width=10_000) if node.value else ""


def front_matter(values: Mapping[str, Any]) -> str:
    """Keys as YAML, short lists on one line; what is None or empty is left out."""
    said = {key: value for key, value in values.items() if value not in (None, [], (), {})}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in said.items()}
    return "".join(_line(key, value) for key, value in plain.items())


def _line(key: str, value: Any) -> str:
    flow = None if isinstance(value, list | dict) else False  # None would put a lone text between braces
    return yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=10_000)


def rendered(card: CardFile) -> str:
    """The text of a card."""
    return f"---\n{card.front}---\n{card.body}" if card.front else card.body


def escaped(name: str) -> str:
    """A name as Markdown shows it: on one line, with nothing in it that means a link, code, a tag or a cell."""
    plain = " ".join("".join(character if character.isprintable() else " " for character in name).split())
    return _SPECIAL.sub(r"\\\1", plain).replace("\\<", "&lt;").replace("\\>", "&gt;")


def code(text: str) -> str:
    """A text between backticks, for a file name or a command."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`"


def without_local_paths(text: str) -> str:
    """The text with paths of this machine cut down to their last part. A path is of this machine where its first part
    is here: what looks like one and is none, such as `/v1/chat`, stays.
    """

    def shortened(match: re.Match[str]) -> str:
        path = match[0]
        if path.startswith("/") and not Path("/", path.split("/")[1]).exists():
            return path
        return Path(path).name

    return _LOCAL.sub(shortened, text)
