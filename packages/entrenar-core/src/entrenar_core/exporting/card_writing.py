"""The model card of what was exported: which files there are, how they were made, and what loads them.

A card that the model has already stays, word for word; what is said of the files stands in a section of its own, which
a later export replaces. What its front matter says of the original alone, such as its scores, does not go to a
quantised copy.

Source: huggingface.co/docs/hub/model-cards.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entrenar_core.conversion.files import OF_FILES
from entrenar_core.exporting.card import HUB, CardFacts, card_facts, is_hub_name
from entrenar_core.exporting.card_files import (
    CardFile,
    escaped,
    read_card,
    rendered,
    with_values,
    without_local_paths,
)
from entrenar_core.exporting.card_loading import loading
from entrenar_core.exporting.card_measured import ExportedFile, comparison
from entrenar_core.units import size

_LOADING = re.compile(r"^## Loading\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
"""What the card of a run says of its own safetensors."""
_OPEN, _CLOSE = OF_FILES, "<!-- entrenar: end of files -->"


def export_card(
    source: Path,
    exported: Sequence[ExportedFile],
    *,
    facts: CardFacts | None = None,
    written: Path | None = None,
    repo_id: str | None = None,
    license: Mapping[str, Any] | None = None,  # noqa: A002 - as the front matter calls it
    encoder: bool | None = None,
) -> str:
    """The README.md to put beside exported files.

    Args:
        source: the folder of the model that they were made of.
        exported: the files.
        facts: what is known of that model, where its folder does not say it.
        written: the folder that they are in, with their settings, where there is one.
        repo_id: the name on the Hub of the model in `source`, if it is from there: the base model of what is exported.
        license: of the base models, for a model that does not say its own (see `card.shared_license`).
        encoder: whether the model makes vectors or classes, and no text; as the config.json beside the files says, if
            not given.

    Raises:
        ValueError: `repo_id` is no org/name.
    """
    if repo_id is not None and not is_hub_name(repo_id):
        raise ValueError(f"{repo_id!r} is no org/name")
    own = None if facts is not None else read_card(source)
    facts = facts or card_facts(source, repo_id=repo_id)
    card = own or CardFile("", _first_words(facts, repo_id))
    values = {**({} if own else _known(facts)), **_front_values(card, facts, exported, repo_id)}
    if license and facts.license is None:
        values |= license
    told = _without_section(card.body).rstrip()
    if (source / "run.json").is_file():
        told = without_local_paths(told)  # the card of a run tells its settings
        if all(file.format != "safetensors" for file in exported):
            told = _LOADING.sub("", told)
    body = f"{told}\n\n{files_section(facts, written or source, exported, encoder=encoder)}"
    return rendered(with_values(CardFile(card.front, body, card.values), values))


def _without_section(body: str) -> str:
    """The body without what an earlier export said of its files."""
    start = body.find(_OPEN)
    end = body.find(_CLOSE, start) if start >= 0 else -1
    return body if end < 0 else f"{body[:start].rstrip()}\n\n{body[end + len(_CLOSE) :].lstrip()}"


def _first_words(facts: CardFacts, repo_id: str | None) -> str:
    made_of = f"[{escaped(repo_id)}]({HUB}/{repo_id})" if repo_id else escaped(facts.name)
    what = "what it was trained on, what for" + ("," if facts.license else ", and under\nwhich licence,")
    return f"""
# {escaped(facts.name)}

Exported by entrenar from {made_of}. The model came without a description: {what} has to be looked up where it is from.
"""


def _known(facts: CardFacts) -> dict[str, Any]:
    """What is known of a model that has no card, as front matter."""
    said = {
        "license": facts.license,
        "license_name": facts.license_name,
        "license_link": facts.license_link,
        "language": list(facts.languages),
        "base_model": list(facts.base_models),
        "datasets": [name for name in facts.datasets if is_hub_name(name)],
    }
    return {key: value for key, value in said.items() if value}


def _front_values(
    card: CardFile, facts: CardFacts, exported: Sequence[ExportedFile], repo_id: str | None
) -> dict[str, Any]:
    quantized = any(file.is_quantized for file in exported)
    formats = {file.format for file in exported}
    tags = [*facts.tags, *(name for name in ("gguf", "onnx") if name in formats and name not in facts.tags)]
    values: dict[str, Any] = {} if tags == list(facts.tags) else {"tags": tags}
    if repo_id:
        values |= {"base_model": [repo_id], "base_model_relation": "quantized" if quantized else None}
    if "safetensors" in formats:
        return values if card.text("library_name") else values | {"library_name": "transformers"}
    # What is here is not loaded by the library of the original, and a quantised model has not its scores.
    gone = ("library_name", *(("model-index", "metrics") if quantized else ()))
    return values | {key: None for key in gone if key in card.values}


def files_section(
    facts: CardFacts,
    source: Path,
    exported: Sequence[ExportedFile],
    *,
    others: Sequence[ExportedFile] = (),
    encoder: bool | None = None,
) -> str:
    """What a card says of files in a folder `source`: how they were made, how they answer, and what loads them; of
    `others` it says elsewhere what loads them.
    """
    heading = "| file | format | weights | bits per weight | size |"
    lines = [heading, "| --- | --- | --- | --- | --- |", *map(_row, (*others, *exported))]
    found = [_OPEN, "", "## Files", "", *lines, ""]
    if any(file.is_measured for file in exported):
        found += [*comparison(exported), ""]
    names = [(file.format, file.name) for file in exported]
    found += [loading(facts, source, names, encoder=encoder).rstrip(), "", _CLOSE]
    return "\n".join(found) + "\n"


def _row(file: ExportedFile) -> str:
    bits = "" if file.bits_per_weight is None else f"{file.bits_per_weight:.2f}"
    weights = escaped(file.quantization or "")
    return f"| {escaped(file.name)} | {escaped(file.format)} | {weights} | {bits} | {size(file.size_bytes)} |"
