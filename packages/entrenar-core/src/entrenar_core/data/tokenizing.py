"""Rows to tokens: `input_ids`, `length`, `row`, and what is learnt.

`labels` is the class of a row (−100 where it has none), or for a language model one token per position: the token at
that very position where it is learnt, else −100. Where words are tagged, it is the tag of each word at its first token,
and `targets` says which tokens these are. A row to be masked has `words` instead, the number of each token's word.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from entrenar_core.config.schema import DatasetConfig
from entrenar_core.data.labels import IGNORED, UNLABELLED
from entrenar_core.data.library import reading
from entrenar_core.data.masking import NO_WORD, tells_words, word_numbers
from entrenar_core.data.rendering import Rendered, render
from entrenar_core.data.tags import first_tokens, joined
from entrenar_core.errors import DataError

_BATCH_ROWS = 256


def tokenize_rows(dataset: Any, tokenizer: Any, *, task: str, config: DatasetConfig, max_length: int) -> Any:
    """The tokens of a data set or a stream, at most `max_length` and `config.max_length` in a row.

    Rows that hold no token to learn are dropped, but for a classifier of texts; the new `num_rows` says how many are
    left. A stream drops them too, on the way.

    Raises:
        DataError: no row has a token to learn, or a row cannot be rendered (see `render`).
    """
    import datasets

    limit = min(max_length, config.max_length)
    tokenized = _tokenizing(task, tokenizer, limit, config)
    features = _features(task, weighted=task == "causal-lm" and config.reasoning_column is not None)
    settings = {
        "batched": True,
        "batch_size": _BATCH_ROWS,
        "remove_columns": list(dataset.column_names),
        "features": features,
    }
    if isinstance(dataset, datasets.IterableDataset):
        return dataset.map(tokenized, **settings)
    processes = min(config.num_proc, len(dataset))
    with reading("the data set"):
        result = dataset.map(
            tokenized, num_proc=processes if processes > 1 else None, load_from_cache_file=False, **settings
        )
    if not len(result):
        raise DataError(
            f"none of the {len(dataset)} rows has a token to learn",
            "completions may be empty, or lie beyond `dataset.max_length`",
        )
    return result


def _tokenizing(task: str, tokenizer: Any, limit: int, config: DatasetConfig) -> Any:
    match task:
        case "sequence-classification" | "embedding":
            return _Texts(tokenizer, limit)
        case "token-classification":
            return _Tagger(tokenizer, limit)
        case "masked-lm":
            return _Masked(tokenizer, limit, frozenset(tokenizer.all_special_ids), tells_words(tokenizer))
        case _:
            return _Causal(tokenizer, limit, config)


def _features(task: str, *, weighted: bool) -> Any:
    import datasets

    number, numbers = datasets.Value("int64"), datasets.List(datasets.Value("int64"))
    own = {
        "sequence-classification": {"labels": number},
        "embedding": {"labels": number},
        "token-classification": {"labels": numbers, "targets": datasets.List(datasets.Value("bool"))},
        "masked-lm": {"words": datasets.List(datasets.Value("int32"))},
    }
    return datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("int32")),
            **own.get(task, {"labels": numbers}),
            "length": number,
            "row": number,
            **({"weights": datasets.List(datasets.Value("float32"))} if weighted else {}),
        }
    )


def never_empty(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """The tokens of each text, cut; of one that has none, since some tokenizers add none, a pad token that is read."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length, return_attention_mask=False)["input_ids"]
    return [ids or [tokenizer.pad_token_id] for ids in encoded]


@dataclass(frozen=True, slots=True)
class _Texts:
    tokenizer: Any
    limit: int

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        encoded = never_empty(self.tokenizer, list(rows["text"]), self.limit)
        labels = rows.get("label", [UNLABELLED] * len(encoded))  # sentences need none
        return {
            "input_ids": encoded,
            "labels": [IGNORED if label < 0 else label for label in labels],
            "length": [len(ids) for ids in encoded],
            "row": list(rows["row"]),
        }


@dataclass(frozen=True, slots=True)
class _Tagger:
    """Words are joined by spaces, so that a tokenizer sees the text that it would see when the model is used."""

    tokenizer: Any
    limit: int

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {"input_ids": [], "labels": [], "targets": [], "length": [], "row": []}
        texts, spans = zip(*map(joined, rows["tokens"]), strict=True)
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.limit, return_offsets_mapping=True)
        for index, tags in enumerate(rows["label"]):
            ids, begun = encoded["input_ids"][index], first_tokens(encoded["offset_mapping"][index], spans[index])
            labels = [IGNORED if word is None or tags[word] < 0 else tags[word] for word in begun]
            targets = [word is not None for word in begun]
            if any(targets):
                for column, value in zip(made, (ids, labels, targets, len(ids), rows["row"][index]), strict=True):
                    made[column].append(value)
        return made


@dataclass(frozen=True, slots=True)
class _Masked:
    """Only says which tokens are of one word: which are masked is another matter in every epoch."""

    tokenizer: Any
    limit: int
    special_ids: frozenset[int]
    whole_words: bool

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {"input_ids": [], "words": [], "length": [], "row": []}
        encoded = self.tokenizer(list(rows["text"]), truncation=True, max_length=self.limit)
        for index, ids in enumerate(encoded["input_ids"]):
            words = word_numbers(ids, encoded.word_ids(index), self.special_ids, whole=self.whole_words)
            if any(word != NO_WORD for word in words):
                for column, value in zip(made, (ids, words, len(ids), rows["row"][index]), strict=True):
                    made[column].append(value)
        return made


@dataclass(frozen=True, slots=True)
class _Causal:
    tokenizer: Any
    limit: int
    config: DatasetConfig

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {"input_ids": [], "labels": [], "length": [], "row": []}
        made |= {"weights": []} if self.config.reasoning_column is not None else {}
        for values in zip(*rows.values(), strict=True):
            row = dict(zip(rows, values, strict=True))
            ids, labels, weights = self._tokens(render(row, self.config, self.tokenizer))
            if any(label != IGNORED for label in labels[1:]):  # nothing predicts the first
                for column, value in zip(made, (ids, labels, len(ids), row["row"], weights), strict=False):
                    made[column].append(value)
        return made

    def _tokens(self, rendered: Rendered) -> tuple[list[int], list[int], list[float]]:
        """Tokens, the same where they are learnt, and their weights. An EOS closes what was not cut, and is learnt
        with it.
        """
        ids, learnt, reasons = self._encoded(rendered)
        eos = self.tokenizer.eos_token_id
        if rendered.add_special_tokens and eos is not None and any(learnt):
            if ids[-1] != eos:
                ids, learnt, reasons = [*ids, eos], [*learnt, True], [*reasons, False]
            learnt[-1] = True
        labels = [token if learn else IGNORED for token, learn in zip(ids, learnt, strict=True)]
        thought, told = self.config.reasoning_weight, self.config.completion_weight
        weights = [thought if reason else told for reason in reasons]
        return ids[: self.limit], labels[: self.limit], weights[: self.limit]

    def _encoded(self, rendered: Rendered) -> tuple[list[int], list[bool], list[bool]]:
        """Tokens, whether they are learnt, and whether they are of a reasoning."""
        special = rendered.add_special_tokens
        if self.tokenizer.is_fast:
            # verbose: a warning about the model's limit would be wrong, as the tokens are cut below it afterwards
            encoded = self.tokenizer(
                rendered.text,
                add_special_tokens=special,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
                verbose=False,
            )
            inside = covered(encoded["offset_mapping"], rendered.spans)
            added = (
                mask and start == end
                for mask, (start, end) in zip(encoded["special_tokens_mask"], encoded["offset_mapping"], strict=True)
            )
            learnt = [ok and not extra for ok, extra in zip(inside, added, strict=True)]
            return list(encoded["input_ids"]), learnt, covered(encoded["offset_mapping"], [rendered.reasoning])
        if rendered.spans != ((0, len(rendered.text)),):
            raise DataError(
                f"{type(self.tokenizer).__name__} does not say which characters a token stands for, "
                "so prompts cannot be left out of what is learnt",
                "take a model whose tokenizer has a tokenizer.json",
            )
        ids = list(self.tokenizer(rendered.text, add_special_tokens=special, verbose=False)["input_ids"])
        return ids, [token not in self.tokenizer.all_special_ids for token in ids], [False] * len(ids)


def covered(offsets: Iterable[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether a token shares a character with a span, per token; offsets and spans ascend.

    Some tokenizers trim white space off their offsets, to nothing for a token of spaces: such a token stands for what
    lies between its neighbours.
    """
    learnt, reached = [], 0
    remaining = [span for span in reversed(spans) if span[1] > span[0]]
    for start, end in offsets:
        first, last = (start, end) if end > start else (min(start, reached), max(end, reached + 1))
        while remaining and first >= remaining[-1][1]:
            remaining.pop()
        learnt.append(bool(remaining) and last > remaining[-1][0])
        reached = max(reached, end)
    return learnt
