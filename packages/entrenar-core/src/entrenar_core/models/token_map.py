"""A teacher whose vocabulary is the student's in another order, made to read the student's ids and answer in them.

Shapes: B rows, T positions, V tokens of the student, H width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from entrenar_core.data.collating import Packed
from entrenar_core.models.calling import logits_of


@dataclass(frozen=True, slots=True)
class TokenMap:
    """`teacher_ids_V`: for each of the student's ids, the teacher's id of the same token."""

    teacher_ids_V: Tensor

    @classmethod
    def of(cls, teacher_ids: Sequence[int]) -> "TokenMap":
        """From numbers, such as those of a `VocabularyFinding`.

        Raises:
            ValueError: two tokens have one id, or an id is negative.
        """
        if len(set(teacher_ids)) < len(teacher_ids) or min(teacher_ids, default=0) < 0:
            raise ValueError("the teacher's ids are not distinct and 0 or more")
        return cls(torch.tensor(teacher_ids, dtype=torch.long))

    def to_teacher(self, ids: Tensor) -> Tensor:
        """The teacher's ids of the student's, of any shape, on the device of `ids`."""
        return self._on(ids.device)[ids]

    def logits_to_student(self, teacher_logits_V: Tensor) -> Tensor:
        """(…, V) in the student's order, of the teacher's (…, rows of its head); what pads its head falls away."""
        return teacher_logits_V.index_select(-1, self._on(teacher_logits_V.device))

    def head_rows(self, rows_V: Tensor) -> Tensor:
        """The rows of the teacher's head in the student's order: a weight (V, H), or a bias (V,)."""
        return rows_V.index_select(0, self._on(rows_V.device))

    def _on(self, device: torch.device) -> Tensor:
        return self.teacher_ids_V.to(device)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a mapped teacher says."""

    logits: Tensor


class MappedTeacher(nn.Module):
    """A teacher that reads and answers in the student's ids. It holds the teacher, and copies none of its weights.

    `over_tokens`: its logits are over tokens, and not over classes, which have no order to change.
    """

    teacher_ids_V: Tensor

    def __init__(self, model: nn.Module, token_map: TokenMap, *, over_tokens: bool) -> None:
        super().__init__()
        self.model = model
        self.over_tokens = over_tokens
        self.register_buffer("teacher_ids_V", token_map.teacher_ids_V, persistent=False)  # moves with the model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, packed: Packed | None = None) -> Answer:
        """Ids and mask (B, T) of the student to logits (B, T, V) in its order, or (B, C)."""
        token_map = TokenMap(self.teacher_ids_V)
        logits = logits_of(self.model, token_map.to_teacher(input_ids), attention_mask, packed)
        made = logits.shape[-1] > 0  # else they are made from hidden states, by whoever called
        return Answer(token_map.logits_to_student(logits) if self.over_tokens and made else logits)
