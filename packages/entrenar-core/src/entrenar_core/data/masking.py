"""Which tokens a masked language model has to tell, and what stands in their place.

Whole words are chosen: a piece of a word is easily told from its other pieces. Of the chosen words, 80 % become mask
tokens, 10 % random tokens and 10 % stay what they are, since no text that is read later has mask tokens.

Source: Devlin et al. 2019, "BERT"; whole words, Cui et al. 2021, "Pre-Training with Whole Word Masking for Chinese
BERT". They draw words until a share of the tokens is reached; here it is a share of the words.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from entrenar_core.data.chance import drawer
from entrenar_core.data.labels import IGNORED

NO_WORD = -1
"""What stands for the word of a special token."""
MASKED, RANDOM = 0.8, 0.1
_EVALUATION_SEED = 0
_PROBE = "one two"


@dataclass(frozen=True, slots=True)
class Masking:
    """How rows are masked. `ordinary_ids` are those that a random token is drawn from."""

    mask_token_id: int
    ordinary_ids: tuple[int, ...]
    probability: float
    seed: int

    @classmethod
    def of(cls, tokenizer: Any, *, probability: float, seed: int) -> "Masking":
        """With the tokens of a tokenizer that has a mask token."""
        special = set(tokenizer.all_special_ids)
        ordinary = sorted(id_ for id_ in tokenizer.get_vocab().values() if id_ not in special)
        return cls(tokenizer.mask_token_id, tuple(ordinary), probability, seed)

    def apply(
        self, input_ids: Sequence[int], words: Sequence[int], *, row: int, epoch: int | None
    ) -> tuple[list[int], list[int]]:
        """The ids of a row with some words masked, and its labels: the tokens that were there, −100 elsewhere.

        What is drawn is a function of seed, epoch and row, whatever else is in a batch; without an epoch, of the row
        alone. Of n words, p · n are chosen on average, and at least one.

        Args:
            input_ids: the tokens of the row.
            words: for each token the number of its word, `NO_WORD` where it is of none.
            row: the row's position in its source.
            epoch: the pass over the rows, counted from 0; None for evaluation.
        """
        purpose = f"mask of row {row} in epoch {epoch}" if epoch is not None else f"mask of evaluation row {row}"
        draw = drawer(_EVALUATION_SEED if epoch is None else self.seed, purpose)
        places: dict[int, list[int]] = defaultdict(list)
        for position, word in enumerate(words):
            if word != NO_WORD:
                places[word].append(position)
        ids, labels = list(input_ids), [IGNORED] * len(input_ids)
        for word in draw.sample(list(places), self._how_many(len(places), draw)):
            self._hide(places[word], ids, labels, draw)
        return ids, labels

    def _how_many(self, words: int, draw: Random) -> int:
        """p · n, rounded up as often as its fraction says: a fixed rounding would be another share in short rows."""
        return min(words, max(1, int(self.probability * words + draw.random())))

    def _hide(self, positions: Sequence[int], ids: list[int], labels: list[int], draw: Random) -> None:
        fate = draw.random()
        for position in positions:
            labels[position] = ids[position]
            if fate < MASKED:
                ids[position] = self.mask_token_id
            elif fate < MASKED + RANDOM:
                ids[position] = draw.choice(self.ordinary_ids)


def tells_words(tokenizer: Any) -> bool:
    """Whether a fast tokenizer knows which tokens are of one word; some take a whole text for one."""
    return len({word for word in tokenizer(_PROBE).word_ids() if word is not None}) > 1


def word_numbers(
    input_ids: Sequence[int], word_ids: Sequence[int | None], special_ids: frozenset[int], *, whole: bool
) -> list[int]:
    """The number of each token's word, `NO_WORD` of a special one; an unknown token says nothing worth telling.

    `whole`: pieces of a word have one number, else each token has its own.
    """
    numbers = word_ids if whole else range(len(input_ids))
    return [
        NO_WORD if word is None or number is None or id_ in special_ids else number
        for id_, word, number in zip(input_ids, word_ids, numbers, strict=True)
    ]
