"""Loads a GGUF in llama.cpp and compares it with the model that it was made of.

llama.cpp is asked first and ended, then the original is loaded: only one of them is in memory at a time, and of what
llama.cpp says only what is compared.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar_core.artifact import ModelArtifact, inspect_folder
from entrenar_core.errors import UsageError
from entrenar_core.formats.gguf import read_header
from entrenar_core.quantization.mixes import MIXES
from entrenar_core.verification.asking import Told, predictions, token_ids, vectors
from entrenar_core.verification.judging import compare_classes, compare_predictions, compare_vectors
from entrenar_core.verification.limits import limits_of
from entrenar_core.verification.passage import PASSAGE
from entrenar_core.verification.result import TextAgreement, TextDifference, Verification
from entrenar_core.verification.rows import Row, encoded, rows_of, texts_of
from entrenar_core.verification.server import LlamaServer, require_llama_cpp
from entrenar_core.verification.tokenizer import reference_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from entrenar_core.losses.pooling import Pool

POSITIONS = 256
Progress = Callable[[str, int, int], None]
"""Is told what is done, how much of it, and of how much."""
_LEAST = 32
"""Fewer predicted tokens than that say nothing of a model."""
_CONTEXT = 512
"""Of a GGUF that names none."""
_POOLINGS: "Mapping[object, Pool | None]" = {0: None, 1: "mean", 2: "first", 3: "last"}
"""As llama.cpp numbers them."""
_CLASSES = 4
"""Its number for a classifier, whose logits it gives where others give a vector."""


def verify(
    gguf: Path,
    original: ModelArtifact | Path,
    *,
    mix: str | None = None,
    texts: Sequence[str],
    passage: str | None = None,
    positions: int = POSITIONS,
    threads: int | None = None,
    progress: Progress = lambda *_: None,
) -> Verification:
    """Compares tokens, and predictions or vectors, of a GGUF in real llama.cpp with those of its original.

    Args:
        gguf: the file.
        original: the model that it was made of, as transformers loads it.
        mix: what the weights were quantised to, a name in `LIMITS`, which decides how far they may differ; by default
            what the file says of itself.
        texts: which both tokenizers cut.
        passage: whose tokens are predicted, or whose paragraphs become vectors; by default our own.
        positions: how many tokens are predicted, at most.
        threads: how many compute in llama.cpp; by default as many as this process may use.
        progress: is told of texts and positions.

    Raises:
        UsageError: the type is not known, or the passage has hardly anything to predict.
        ModelError: llama.cpp is not installed, refuses the file, or ends; or the original cannot be loaded.
    """
    require_llama_cpp()
    metadata = read_header(gguf).metadata
    mix = _stated(gguf, metadata) if mix is None else mix.lower()
    limits = limits_of(mix)
    artifact = original if isinstance(original, ModelArtifact) else inspect_folder(original)
    tokenizer = reference_tokenizer(artifact)
    embeds, context = _embeds(metadata), _context(metadata, artifact)
    read = PASSAGE if passage is None else passage
    rows = (
        texts_of(tokenizer, read, texts, context=context)
        if embeds
        else _enough(rows_of(tokenizer, read, positions=positions, context=context), positions)
    )
    longest = max(len(row.ids) for row in rows)
    predicted, compared, classified = None, None, None
    with LlamaServer(gguf, context=longest + 1, embeds=embeds, threads=threads) as server:
        agreement = _agreement(server, tokenizer, texts, progress)
        if embeds:
            classes = _classes(gguf, metadata)
            made = [vectors(server, row.ids, classes) for row in rows]
        else:
            told = _told(server, rows, progress)
    if embeds and _said(metadata, "pooling_type") == _CLASSES:
        classified = compare_classes(artifact, rows, made, limits)
    elif embeds:
        compared = compare_vectors(artifact, rows, made, _POOLINGS.get(_said(metadata, "pooling_type")), limits)
    else:
        predicted = compare_predictions(artifact, rows, told, limits)
    return Verification(mix, limits, agreement, predicted, compared, classified)


def _enough(rows: list[Row], wanted: int) -> list[Row]:
    found = sum(len(row.places) for row in rows)
    if found < min(wanted, _LEAST):
        raise UsageError(
            f"the passage to verify with has {found} tokens that a model could predict, which says nothing of it",
            f"give one of {_LEAST} and more",
        )
    return rows


def _agreement(server: LlamaServer, tokenizer: "Tokenizer", texts: Sequence[str], progress: Progress) -> TextAgreement:
    agreeing, first = 0, None
    for done, text in enumerate(texts):
        progress("texts", done, len(texts))
        found = [_difference(server, tokenizer, text, special=special) for special in (False, True)]
        different = next(filter(None, found), None)
        first, agreeing = first or different, agreeing + (different is None)
    progress("texts", len(texts), len(texts))
    return TextAgreement(len(texts), agreeing, first)


def _difference(server: LlamaServer, tokenizer: "Tokenizer", text: str, *, special: bool) -> TextDifference | None:
    ours, theirs = encoded(tokenizer, text, special=special), token_ids(server, text, special=special)
    return None if ours == theirs else TextDifference(text, special, ours, theirs)


def _told(server: LlamaServer, rows: Sequence[Row], progress: Progress) -> list[Told]:
    total, done = sum(len(row.places) for row in rows), count()
    progress("positions", next(done), total)
    return [predictions(server, row, lambda: progress("positions", next(done), total)) for row in rows]


def _stated(gguf: Path, metadata: Mapping[str, Any]) -> str:
    number = metadata.get("general.file_type")
    found = next((mix.name for mix in MIXES.values() if mix.file_type == number), None)
    if found is None:
        raise UsageError(f"{gguf} does not say in which type its weights are", "name it as it was quantised")
    return found


def _said(metadata: Mapping[str, Any], key: str) -> Any:
    return metadata.get(f"{metadata.get('general.architecture')}.{key}")


def _classes(gguf: Path, metadata: Mapping[str, Any]) -> int | None:
    """How many classes a classifier tells apart."""
    if _said(metadata, "pooling_type") != _CLASSES:
        return None
    labels = _said(read_header(gguf, arrays=True).metadata, "classifier.output_labels")
    return len(labels) if isinstance(labels, tuple) else None


def _embeds(metadata: Mapping[str, Any]) -> bool:
    """Whether it makes vectors: its attention looks both ways, or it says how tokens are pooled."""
    return _said(metadata, "attention.causal") is False or _said(metadata, "pooling_type") in (1, 2, 3)


def _context(metadata: Mapping[str, Any], artifact: ModelArtifact) -> int:
    """How many tokens both read."""
    told = (_said(metadata, "context_length"), artifact.architecture.max_positions)
    return min((length for length in told if isinstance(length, int) and length > 0), default=_CONTEXT)
