"""The settings of a merged model: those of its base, corrected where a head is new or no longer the embeddings."""

import json
import re
from collections.abc import Mapping
from typing import Any

from entrenar_core.adapters.adapter import Adapter
from entrenar_core.adapters.placing import HEAD_CLASSES, Placed
from entrenar_core.adapters.reading import LABELS
from entrenar_core.formats.names import shown
from entrenar_core.formats.tensors import StoredTensor

_CLASS_END = re.compile(r"(?:Model|LMHeadModel|PreTrainedModel|For[A-Z]\w*)$")
_SHOWN = 3


def settings_after(placed: Placed, *, unties: bool) -> tuple[Mapping[str, Any] | None, list[str]]:
    """The base's settings as those of the merged model."""
    config, notes = placed.base.config, []
    if unties:
        name = ", ".join(placed.tied.standing)
        notes.append(f"the head and the embeddings, one tensor before, are two now: {name} is written")
        if config is None:
            notes.append("there is no config.json: set `tie_word_embeddings` to false in the model's")
        else:
            config = {**config, "tie_word_embeddings": False}
    if config is not None:
        config = _with_labels(_with_as_many(config, placed), placed)
    if placed.new:
        adapter = next(iter(placed.new.values()))[0]
        named = ", ".join(map(shown, list(placed.new)[:_SHOWN]))
        notes.append(f"new in the model, as the adapter brings it: {named}")
        if config is not None:
            config = _with_head(config, adapter, placed.new)
    return config, notes


def _with_as_many(config: Mapping[str, Any], placed: Placed) -> Mapping[str, Any]:
    """With as many classes as the last layer of a head has that stands in place of the base's."""
    for name, (_, tensor) in placed.whole.items():
        old = placed.base.tensors.get(name)
        if old is not None and len(old.shape) == 2 and old.shape != tensor.shape:
            return {**config, **_numbered(tensor.shape[0])}
    return config


def _numbered(labels: int) -> dict[str, Any]:
    """Classes without names."""
    return {
        "id2label": {str(number): f"LABEL_{number}" for number in range(labels)},
        "label2id": {f"LABEL_{number}": number for number in range(labels)},
    }


def _with_labels(config: Mapping[str, Any], placed: Placed) -> Mapping[str, Any]:
    """With the classes that an adapter says its head tells apart, for which peft's settings have no place."""
    whole = {**placed.whole, **placed.new}
    said = (adapter.model.metadata.get(LABELS) for adapter, _ in whole.values())
    names = next((found for text in said if (found := _names(text))), None)
    if names is None:
        return config
    by_id = {str(number): name for number, name in enumerate(names)}
    return {**config, "id2label": by_id, "label2id": {name: number for number, name in enumerate(names)}}


def _names(text: object) -> list[str] | None:
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else None


def _with_head(
    config: Mapping[str, Any], adapter: Adapter, new: dict[str, tuple[Adapter, StoredTensor]]
) -> Mapping[str, Any]:
    """With the class and the number of labels that a new head needs."""
    end = HEAD_CLASSES.get(str(adapter.settings.said.get("task_type")))
    if end is None:
        return config
    found: dict[str, Any] = dict(config)
    classes = config.get("architectures")
    if classes:
        found["architectures"] = [_CLASS_END.sub("", str(classes[0])) + end]
    labels = next((tensor.shape[0] for name, (_, tensor) in reversed(new.items()) if name.endswith(".weight")), None)
    if labels is not None and len(config.get("id2label") or ("", "")) != labels:
        found |= _numbered(labels)
    return found
