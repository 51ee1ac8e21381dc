"""What a cache was made of, and what of it is another now: of another teacher, signals are worth nothing."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from entrenar_core.models.heads import CAUSAL_LM, MASKED_LM
from entrenar_core.models.tokenizer_facts import facts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from entrenar_core.training.preparation import Preparation


@dataclass(frozen=True, slots=True)
class Identity:
    """All that decides which signals a teacher gives of which tokens.

    Hashes are SHA-256. Rows are no part of it: each is known by its own tokens. `masking` are the settings that masks
    follow from, None where nothing is masked; `pooling` is of a sentence encoder. `weights` is None where they are
    not here, and were not read.
    """

    task: str
    teacher: str
    weights: str | None
    dtype: str
    load_in: str | None
    precision: str
    finetune: str | None
    tokenizer: str
    ids: str | None
    template: str | None
    max_length: int
    vocabulary: int | None
    pooling: str | None
    reads: str
    masking: str | None

    def as_json(self) -> dict[str, Any]:
        """As a manifest holds it."""
        return asdict(self)


_NAMES = {
    "task": "the task",
    "weights": "the teacher's weights",
    "dtype": "`teacher.dtype`",
    "load_in": "`teacher.load_in`",
    "precision": "`training.mixed_precision`",
    "finetune": "`teacher.finetune`, or what the teacher was fitted to",
    "tokenizer": "the tokenizer",
    "ids": "the ids of the teacher's tokenizer",
    "template": "the chat template",
    "max_length": "`dataset.max_length`",
    "vocabulary": "the number of tokens",
    "pooling": "`teacher.pooling`",
    "reads": "what the teacher reads",
    "masking": "what is masked (`dataset.mask_probability`, `training.seed`)",
}
_HASHES = ("weights", "tokenizer", "ids", "template", "finetune")


def identity_of(prepared: "Preparation") -> Identity:
    """Of a prepared distillation; reads every byte of the teacher's weights."""
    config = prepared.config
    finetune, reads_tokens = config.teacher.finetune, prepared.teacher_reads_tokens
    masked = {"probability": config.dataset.mask_probability, "seed": config.training.seed}
    return Identity(
        task=prepared.task,
        teacher=prepared.teacher_name,
        weights=_weights(prepared),
        dtype=config.teacher.dtype,
        load_in=config.teacher.load_in,
        precision=config.training.mixed_precision,
        finetune=None
        if finetune is None
        else _hash([finetune.model_dump(mode="json"), config.training.seed, prepared.rows.fingerprint]),
        tokenizer=tokenizer_hash(prepared.tokenizer if reads_tokens else prepared.teacher_tokenizer),
        ids=_teacher_ids(prepared),
        template=_template(prepared),
        max_length=config.dataset.max_length,
        vocabulary=prepared.vocabulary,
        pooling=None if prepared.poolings is None else prepared.poolings[0],
        reads="the student's tokens" if reads_tokens else "the texts by itself",
        masking=json.dumps(masked) if prepared.task == MASKED_LM else None,
    )


def differences(built: Mapping[str, Any], now: Identity) -> Iterator[str]:
    """What is another now than when the cache was built: `the tokenizer`, and values of what has one."""
    current = now.as_json()
    for name, told in _NAMES.items():
        if built.get(name) != current[name] and not (name == "weights" and current[name] is None):
            yield told if name in _HASHES else f"{told} ({built.get(name)} when it was built, {current[name]} now)"


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Over its tokens with their ids, its special ones, and what decides how a text is split."""
    facts = facts_of(tokenizer)
    return _hash([sorted(facts.tokens.items()), dict(facts.roles), dict(facts.parts)])


def _weights(prepared: "Preparation") -> str | None:
    if prepared.endpoint is not None:
        return _hash(["served", prepared.endpoint.model])
    return prepared.teacher.fingerprint(tokenizer=False) if prepared.teacher.knows_weights else None


def _teacher_ids(prepared: "Preparation") -> str | None:
    """Of the teacher's ids for the student's tokens, where they are others."""
    ids = prepared.finding.teacher_ids if prepared.finding else None
    return None if ids is None else _hash(list(ids))


def _template(prepared: "Preparation") -> str | None:
    """Of the chat template, where rows are rendered by one."""
    template = getattr(prepared.tokenizer, "chat_template", None)
    uses = prepared.task == CAUSAL_LM and prepared.config.dataset.messages_column is not None
    return _hash(template) if uses and template is not None else None


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
