"""Which tensors of a model are one and the same: heads that are the embeddings over again."""

from collections.abc import Mapping
from dataclasses import dataclass

from entrenar_core.architectures.detection import detect
from entrenar_core.stored_model import StoredModel

_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Tied:
    """`standing` has, by the name of each tensor of a head that is tied, the stored one that stands for it."""

    standing: Mapping[str, str]

    @property
    def embeddings(self) -> frozenset[str]:
        """The tensors that stand for others."""
        return frozenset(self.standing.values())

    def head_of(self, tensor: str) -> str | None:
        """The head's matrix that a tensor stands for."""
        return next(
            (head for head, other in self.standing.items() if other == tensor and head.endswith(".weight")), None
        )


def tied_tensors(model: StoredModel) -> Tied:
    """Of a model as it is stored: a head that is missing, or one that config.json says to be the embeddings."""
    found = detect({name: tensor.shape for name, tensor in model.tensors.items()})
    if found is None:
        return Tied({})
    standing = dict(found.tied)
    says = (model.config or {}).get("tie_word_embeddings") is True
    if says and _HEAD in model.tensors and found.embeddings:
        return Tied({**standing, _HEAD: found.embeddings[0]})  # the stored one is not read
    return Tied(standing)
