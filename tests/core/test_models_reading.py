"""When a teacher reads the student's tokens, and what would let it read texts by itself."""

from typing import Any

import pytest

from entrenar_core.config import parse_config
from entrenar_core.models.reading import reads_tokens, way_out


def config(**changes: Any) -> Any:
    values: dict[str, Any] = {"teacher": {"model_id": "t"}, "student": {"model_id": "s"}, "dataset": {"name": "d"}}
    for section, settings in changes.items():
        values.setdefault(section, {}).update(settings)
    return parse_config(values)


LAYERS = {"losses": [{"name": "forward_kl"}, {"name": "minilm"}]}


@pytest.mark.parametrize(
    ("task", "changes", "reads", "ends"),
    [
        ("causal-lm", {}, True, ""),
        ("sequence-classification", {}, False, None),
        ("sequence-classification", {"dataset": {"streaming": True}}, True, "remove `dataset.streaming`, so"),
        ("sequence-classification", {"distillation": LAYERS}, True, "remove `distillation.losses`, so"),
        ("sequence-classification", {"distillation": {"attention": {}, "progressive": {}}}, True,
         "remove `distillation.progressive` and `distillation.attention`, so"),
        ("sequence-classification", {"distillation": {"attention": {"enabled": False}}}, False, None),
    ],
)  # fmt: skip
def test_who_reads_what(task: str, changes: dict[str, Any], reads: bool, ends: str | None) -> None:
    read = config(**changes)
    assert reads_tokens(read, task) == reads
    if ends == "":
        assert way_out(read, task) == ""
    elif ends:
        assert ends in way_out(read, task)
