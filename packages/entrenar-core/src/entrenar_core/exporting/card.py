"""What a model says of itself, for its next card and for the `general.*` keys of a GGUF.

Nothing is made up: a licence, a language or a data set is named where the model's own card names it, and nowhere else.

Source: huggingface.co/docs/hub/model-cards; ggml's docs/gguf.md, and the naming of gguf-py's metadata.py.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import ModelError
from entrenar_core.exporting.card_files import CARD, CardFile, read_card
from entrenar_core.formats import WeightFormat, read_json
from entrenar_core.formats.gguf_values import Value, text, texts, u32
from entrenar_core.references import HubReference

HUB = "https://huggingface.co"
_ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_HUB_PAGE = re.compile(rf"{re.escape(HUB)}/(datasets/)?(?P<repo>[^/\s]+/[^/\s]+)/?")
_MAX_TEXT, _MAX_ORIGINS = 300, 100
_AS_IT_IS = re.compile(r"v\d+(\.\d+)*|\d.*")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What is known of a model. Base models and data sets are Hub names (`org/name`) or addresses, languages are codes,
    and what is not known is None or empty.
    """

    name: str
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    author: str | None = None
    organization: str | None = None
    url: str | None = None


def card_facts(folder: Path, *, repo_id: str | None = None) -> CardFacts:
    """What a folder of a model says of it: its README.md, the `report.json` of a run, its config.json.

    Args:
        folder: of the model, or of the result of a run.
        repo_id: where on the Hub it is from, which names it before anything else.
    """
    card = read_card(folder) or CardFile("", "")
    report = _json(folder / "report.json")
    config = _json(folder / "config.json")
    own = repo_id or _hub_name(config.get("_name_or_path"))
    known = _report_name(report) or folder.resolve().name
    organization, _, short = own.partition("/") if own else ("", "", "")
    return CardFacts(
        name=card.text("model_name") or card.text("name") or title(short or known),
        license=",".join(card.texts("license")) or None,
        license_name=card.text("license_name"),
        license_link=card.text("license_link"),
        base_models=card.texts("base_model") or card.texts("base_models"),
        datasets=card.texts("datasets") or card.texts("dataset"),
        tags=card.texts("tags"),
        languages=card.texts("language") or card.texts("languages"),
        pipeline_tag=card.text("pipeline_tag"),
        author=card.text("model_creator") or card.text("author"),
        organization=card.text("organization") or (title(organization) if organization else None),
        url=f"{HUB}/{own}" if own else None,
    )


def facts_of(artifact: ModelArtifact) -> CardFacts:
    """What a model on this machine says of itself: a GGUF in its metadata, a checkpoint by the card of its run."""
    reference = artifact.reference
    repo_id = reference.repo_id if isinstance(reference, HubReference) and "/" in reference.repo_id else None
    if artifact.format is WeightFormat.GGUF:
        return _facts_of_gguf(artifact.config, artifact.weight_files[0].stem)
    return card_facts(described_in(artifact.path), repo_id=repo_id)


def described_in(folder: Path) -> Path:
    """Where the card of a model lies: in its folder, or in that of the run that a checkpoint is of."""
    run = folder.parent.parent
    of_run = folder.parent.name == "checkpoints" and (run / "run.json").is_file() and not (folder / CARD).exists()
    return run if of_run else folder


def _facts_of_gguf(metadata: Mapping[str, Any], stem: str) -> CardFacts:
    said = partial(_said, metadata)
    return CardFacts(
        name=said("name") or title(stem),
        license=said("license"),
        license_name=said("license.name"),
        license_link=said("license.link"),
        base_models=_origins(metadata, "base_model"),
        datasets=_origins(metadata, "dataset"),
        tags=_listed(metadata, "tags"),
        languages=_listed(metadata, "languages"),
        author=said("author"),
        organization=said("organization"),
        url=said("source.repo_url") or said("source.url"),
    )


def _said(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(f"general.{key}")
    return " ".join(value.split())[:_MAX_TEXT] if isinstance(value, str) and value.isprintable() else None


def _listed(metadata: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = metadata.get(f"general.{key}")
    return tuple(value for value in values if isinstance(value, str)) if isinstance(values, tuple) else ()


def _origins(metadata: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """The models or data sets that a GGUF is made of: as Hub names where they are on the Hub."""
    count = metadata.get(f"general.{kind}.count")
    places = range(min(count, _MAX_ORIGINS) if type(count) is int else 0)
    said = (_said(metadata, f"{kind}.{place}.repo_url") or _said(metadata, f"{kind}.{place}.name") for place in places)
    return tuple(page["repo"] if (page := _HUB_PAGE.fullmatch(one)) else one for one in said if one)


def _json(file: Path) -> Mapping[str, Any]:
    with suppress(ModelError):
        return read_json(file) if file.is_file() else {}
    return {}


def _hub_name(value: object) -> str | None:
    """`_name_or_path` of config.json, unless it is a folder of someone's machine."""
    return value if isinstance(value, str) and is_hub_name(value) and not Path(value).exists() else None


def is_hub_name(name: str) -> bool:
    """Whether a name reads `org/name`, as repositories on the Hub are called."""
    return _ON_THE_HUB.fullmatch(name) is not None


def _report_name(report: Mapping[str, Any]) -> str | None:
    """The student's, which a run calls by the model that it was made of."""
    student = report.get("student")
    name = student.get("name") if isinstance(student, Mapping) else None
    if not isinstance(name, str) or not name.isprintable() or " " in name:
        return None  # a description, such as of the teacher's layers that it began with
    return f"{name.rpartition('/')[2]} distilled"


def title(name: str) -> str:
    """A name of the Hub as a title: `tiny-llama-v1.1-1b` is `Tiny Llama v1.1 1b`."""
    words = name.replace("-", " ").split()
    return " ".join(word.title() if word.islower() and not _AS_IT_IS.fullmatch(word) else word for word in words)


def shared_license(facts: Sequence[CardFacts]) -> Mapping[str, Any]:
    """The licence that all of these models are under, as front matter; nothing where one does not say, or another is
    under a different one.
    """
    said = {(one.license, one.license_name, one.license_link) for one in facts}
    if len(said) != 1 or None in {one.license for one in facts}:
        return {}
    named = dict(zip(("license", "license_name", "license_link"), said.pop(), strict=True))
    return {key: value for key, value in named.items() if value is not None}


def gguf_card_metadata(facts: CardFacts) -> Mapping[str, Value]:
    """The keys of a GGUF that tell where a model is from, as llama.cpp's own converter writes them."""
    plain = {
        "general.name": facts.name,
        "general.author": facts.author,
        "general.organization": facts.organization,
        "general.license": facts.license,
        "general.license.name": facts.license_name,
        "general.license.link": facts.license_link,
        "general.source.repo_url": facts.url,
    }
    found = {key: text(value) for key, value in plain.items() if value}
    for kind, references in (("base_model", facts.base_models), ("dataset", facts.datasets)):
        if references:
            found[f"general.{kind}.count"] = u32(len(references))
        for place, reference in enumerate(references):
            found |= {f"general.{kind}.{place}.{key}": text(value) for key, value in _origin(reference, kind).items()}
    tags = tuple(dict.fromkeys((*facts.tags, *([facts.pipeline_tag] if facts.pipeline_tag else []))))
    return found | {
        key: texts(values) for key, values in (("general.tags", tags), ("general.languages", facts.languages)) if values
    }


def _origin(reference: str, kind: str) -> Mapping[str, str]:
    """Name, organisation and address of a model or data set; of an address elsewhere, itself."""
    if (page := _HUB_PAGE.fullmatch(reference)) is not None:
        organization, _, name = page["repo"].partition("/")
        return {"name": title(name), "organization": title(organization), "repo_url": reference}
    if reference.startswith(("http://", "https://", "ssh://")):
        return {"repo_url": reference}
    if not is_hub_name(reference):
        return {"name": title(reference)}
    organization, _, name = reference.partition("/")
    place = f"{HUB}/datasets" if kind == "dataset" else HUB
    return {"name": title(name), "organization": title(organization), "repo_url": f"{place}/{reference}"}
