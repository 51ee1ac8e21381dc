"""What peft calls the tensors of an adapter: `base_model.model.` before the name of a module in the base model, and
`.lora_A.weight` and the like after it. What is named in no known way is an error: a merge that leaves a tensor out
would be a wrong one.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from entrenar_core.errors import ModelError
from entrenar_core.formats.names import shown
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel

PREFIX = "base_model.model."
"""What peft puts before the names of the base model."""
_PARTS = re.compile(
    r"^(?P<module>.+?)\.(?:"
    r"(?P<embedding>lora_embedding_[AB])(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
    r"|(?P<magnitude>lora_magnitude_vector)(?:\.(?!weight$)[^.]+)?(?:\.weight)?"
    r"|(?P<matrix>lora_[AB])(?:\.(?!weight$|bias$)[^.]+)?\.(?P<kind>weight|bias)"
    r")$"
)
_SHOWN = 3
Part = Literal["down", "up", "magnitude", "up_bias"]


@dataclass(slots=True)
class Sorted:
    """The tensors of each module, those that stand for the base's own, which modules are embeddings, and the names that
    mean none of this.
    """

    parts: dict[str, dict[Part, StoredTensor]] = field(default_factory=dict)
    whole: dict[str, StoredTensor] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    strange: list[str] = field(default_factory=list)

    def add(self, name: str, tensor: StoredTensor) -> None:
        """Puts a tensor where it belongs."""
        found = _PARTS.match(name)
        if found is None:
            self._add_whole(name, tensor)
            return
        module, part = _of_base(found["module"].removeprefix(PREFIX)), _part(found)
        if found["embedding"]:
            self.embeddings.add(module)
        own = self.parts.setdefault(module, {})
        if part is None or part in own:
            self.strange.append(name)
        else:
            own[part] = tensor

    def _add_whole(self, name: str, tensor: StoredTensor) -> None:
        own = name.removeprefix(PREFIX)
        if "lora_" in name or "trainable_tokens" in name or own == name:
            self.strange.append(name)
        elif ".original_module." not in own:  # what the base had before, which peft saves where all biases train
            self.whole.setdefault(_of_base(own), tensor)


def sorted_tensors(model: StoredModel) -> Sorted:
    """Every tensor where it belongs.

    Raises:
        ModelError: one belongs nowhere.
    """
    found = Sorted()
    for name, tensor in model.tensors.items():
        found.add(name, tensor)
    if strange := found.strange:
        more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
        raise ModelError(
            f"{model.reference} has tensors that are no part of a LoRA adapter as peft names them: "
            f"{', '.join(shown(name) for name in strange[:_SHOWN])}{more}",
            "save it again with peft, which knows how they are meant",
        )
    return found


def _of_base(name: str) -> str:
    """A name in the base model: wrappers that peft puts around modules are left out."""
    return re.sub(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.|$)", "", name)


def _part(found: re.Match[str]) -> Part | None:
    if found["magnitude"]:
        return "magnitude"
    matrix = found["embedding"] or found["matrix"]
    if found["kind"] == "bias":
        return "up_bias" if matrix.endswith("B") else None
    return "down" if matrix.endswith("A") else "up"
