"""Computes an importance matrix: runs a model over a text and adds up the squares of what its matrices read.

The text is cut into chunks of as many tokens, each a context of its own that starts with the token for the start of a
text, if the model has its texts start so; the last one, which is shorter, is left out. Letters that spell a special
token are letters. The embedding and the head have no entry: only tensors of layers (`blk.`) do.

Source: llama.cpp's tools/imatrix/imatrix.cpp, which does the same, and without `--process-output` leaves the head out.

Shapes: B chunks at once, N chunks, T tokens of a chunk, I inputs of a matrix.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import DataError, ModelError, UsageError
from entrenar_core.importance.matrix import ImportanceMatrix, Inputs
from entrenar_core.models.importance import measure
from entrenar_core.plain_text import plain_text

CHUNK = 512
"""Tokens of a chunk, as in llama.cpp."""
_TOKENS_AT_ONCE = 2048
_LAYERS = "blk."
_OLDER = {"gamma": "weight", "beta": "bias"}
"""What older files call the parameters of norms."""
Progress = Callable[[int, int], None]
"""Is told how many chunks of how many are done."""


def importance_for(
    artifact: ModelArtifact,
    text_file: Path,
    names: Mapping[str, str],
    *,
    chunk: int | None = None,
    chunks: int | None = None,
    progress: Progress | None = None,
) -> ImportanceMatrix:
    """The importance matrix of a model on this machine, computed in 32 bits over a text in UTF-8: see
    `compute_importance`. `chunk` is 512 by default, or what the model reads at most where that is less.

    Raises:
        NotFoundError: there is no such text.
        DataError: it cannot be read, or is too short.
        ModelError: the model or its tokenizer cannot be loaded, or as `compute_importance`.
        UsageError: as `compute_importance`.
    """
    from entrenar_core.models.heads import EMBEDDING, infer_task
    from entrenar_core.models.loading import load_model
    from entrenar_core.models.tokenizers import load_tokenizer

    text = plain_text(text_file, "to calibrate on")
    tokenizer = load_tokenizer(artifact)
    model = load_model(artifact, infer_task(artifact, None) or EMBEDDING)
    if chunk is None:
        chunk = min(CHUNK, _positions(model) or CHUNK)
    return compute_importance(
        model, tokenizer, text, chunk=chunk, chunks=chunks, names=names, dataset=text_file.name, progress=progress
    )


def compute_importance(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    names: Mapping[str, str],
    chunk: int = CHUNK,
    chunks: int | None = None,
    dataset: str | None = None,
    progress: Progress | None = None,
) -> ImportanceMatrix:
    """The importance matrix of a model over a text. Squares are added up in float64, whatever the model computes in.

    Args:
        names: of each weight of the model, such as `model.layers.0.self_attn.q_proj.weight`, what GGUF calls it.
        chunk: tokens of a context.
        chunks: how many chunks to take from the start of the text; all by default.
        dataset: what to call the text in the result.
        progress: is told how many chunks of how many are done.

    Raises:
        UsageError: `chunk` or `chunks` is no size, or the model cannot read as many tokens at once.
        DataError: the text is shorter than one chunk.
        ModelError: the model has matrices that are not told apart here (experts), lacks one of those named or reads
            something that is no number; or the tokenizer has tokens that the model does not know.
    """
    _require_sizes(model, chunk, chunks)
    body = model.base_model
    modules = _matrices(body, model.base_model_prefix, names)
    ids_NT = _chunks(tokenizer, text, chunk, chunks)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    if int(ids_NT.max()) >= embedding.num_embeddings:
        raise ModelError(
            f"the tokenizer has a token {int(ids_NT.max())}, and the model {embedding.num_embeddings:,} embeddings",
            "take the tokenizer of this model",
        )
    sums_I = dict.fromkeys(modules, torch.zeros((), dtype=torch.float64))
    done = 0
    for batch_BT in _batches(ids_NT):
        moments = measure(body, tuple(modules), (), [(batch_BT, torch.ones_like(batch_BT))])
        sums_I = {path: sums_I[path] + mean_I * batch_BT.numel() for path, mean_I in moments.reads.items()}
        done += len(batch_BT)
        if progress is not None:
            progress(done, len(ids_NT))
    inputs = {modules[path]: _inputs(modules[path], squares_I, ids_NT.numel()) for path, squares_I in sums_I.items()}
    return ImportanceMatrix(inputs, len(ids_NT), chunk, () if dataset is None else (dataset,))


def _require_sizes(model: PreTrainedModel, chunk: int, chunks: int | None) -> None:
    if chunk < 1 or (chunks is not None and chunks < 1):
        what = f"{chunk} tokens of a chunk" if chunk < 1 else f"{chunks} chunks"
        raise UsageError(f"{what} are nothing to calibrate on", "at least one is needed")
    positions = _positions(model)
    if positions is not None and chunk > positions:
        raise UsageError(
            f"chunks of {chunk:,} tokens are more than the {positions:,} that the model reads at once",
            f"take chunks of at most {positions:,}",
        )


def _positions(model: PreTrainedModel) -> int | None:
    """How many tokens a model reads at most, where its configuration says it."""
    found = getattr(model.config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def _matrices(body: nn.Module, prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    """The modules of a body that multiply by a matrix of a layer, with what GGUF calls their weights."""
    found: dict[str, str] = {}
    for name, stored in names.items():
        if not stored.startswith(_LAYERS) or not stored.endswith(".weight"):
            continue
        path, _, weight = _inside(body, prefix, name).rpartition(".")
        try:
            module = body.get_submodule(path)
            dimensions = getattr(module, _OLDER.get(weight, weight)).ndim
        except AttributeError as error:
            raise ModelError(f"the model has no weight {name}", "take the names of this model") from error
        if isinstance(module, nn.Linear | Conv1D):
            found[path] = stored
        elif dimensions > 1:
            raise ModelError(
                f"the inputs of {name} cannot be measured: it is no linear layer, as are the matrices of experts",
                "compute the importance matrix with llama.cpp's imatrix tool, and name its file",
            )
    if not found:
        raise ModelError("none of the names is that of a matrix in a layer", "take the names of this model")
    return found


def _inside(body: nn.Module, prefix: str, name: str) -> str:
    """What the body itself calls a weight: checkpoints have its name with or without that of the body before it."""
    first = name.partition(".")[0]
    return name.removeprefix(f"{prefix}.") if first == prefix and not hasattr(body, first) else name


def _chunks(tokenizer: PreTrainedTokenizerBase, text: str, chunk: int, chunks: int | None) -> Tensor:
    start = _start(tokenizer)
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    ids_M = torch.tensor([*start, *ids], dtype=torch.long)
    count = len(ids_M) // chunk
    if not count:
        raise DataError(
            f"the text has {len(ids_M):,} tokens, and one chunk has {chunk:,}",
            "take a longer text, at best of some tens of thousands of tokens, or smaller chunks",
        )
    ids_NT = ids_M[: min(count, chunks or count) * chunk].reshape(-1, chunk).clone()
    ids_NT[:, : len(start)] = torch.tensor(start[:chunk], dtype=torch.long)  # in the place of what was there
    return ids_NT


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text."""
    found = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    mask = [*found["special_tokens_mask"], 0]
    ids: list[int] = found["input_ids"][: mask.index(0)]
    return ids


def _batches(ids_NT: Tensor) -> Iterator[Tensor]:
    size = max(_TOKENS_AT_ONCE // ids_NT.shape[1], 1)
    for first in range(0, len(ids_NT), size):
        yield ids_NT[first : first + size]


def _inputs(name: str, squares_I: Tensor, tokens: int) -> Inputs:
    import numpy as np

    if not bool(squares_I.float().isfinite().all()):
        raise ModelError(
            f"what {name} reads is no number, or too large for float32", "look at the model: its weights may be broken"
        )
    return Inputs(squares_I.float().numpy()[None], np.asarray([tokens]))
