"""A linear probe: the cheapest teacher, a linear classifier over the frozen embeddings of an encoder.

With few labels it is hard to beat: there is nothing to overfit but one matrix, whose penalty cross-validation chooses.

Shapes: B rows of a batch, T positions, H hidden size, N labelled rows, C classes.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entrenar_core.errors import DataError, ModelError, OutputError
from entrenar_core.teachers.reading import in_order, text_batches
from entrenar_core.training.evaluation import OnBatch, watched_by_nobody

STRENGTHS = tuple(10 ** (-exponent / 2) for exponent in range(2, 15))
"""The penalties that cross-validation tries, from 0.1 down to 1e-7, two a decade."""
FOLDS = 5
_KIND = "entrenar linear probe 1"


@dataclass(frozen=True, slots=True)
class Probe:
    """A linear classifier in 32 bits, and the L2 penalty that it was fitted with."""

    weight_CH: Tensor
    bias_C: Tensor
    l2: float


class ProbeClassifier(nn.Module):
    """A body with a probe on its embeddings, as one model."""

    def __init__(self, body: PreTrainedModel, probe: Probe) -> None:
        super().__init__()
        self.body = body
        self.weight_CH = nn.Parameter(probe.weight_CH.to(body.device, copy=True), requires_grad=False)
        self.bias_C = nn.Parameter(probe.bias_C.to(body.device, copy=True), requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, C) in 32 bits of token ids (B, T) and their mask (B, T)."""
        return F.linear(_pooled(self.body, input_ids, attention_mask), self.weight_CH, self.bias_C)


def _pooled(body: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(B, H): mean of the hidden states under the mask, of length 1; zero for a row without tokens."""
    hidden_BTH = body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
    keep_BT1 = attention_mask.bool().unsqueeze(-1)
    sum_BH = hidden_BTH.masked_fill(~keep_BT1, 0.0).sum(1)
    return F.normalize(sum_BH / keep_BT1.sum(1).clamp(min=1), dim=-1)


@torch.no_grad()
def embed(
    model_body: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    batch_size: int,
    max_length: int,
    device: torch.device | str,
    on_batch: OnBatch = watched_by_nobody,
) -> Tensor:
    """Embeddings (texts, H) in 32 bits, in the order of `texts`: mean-pooled over the tokens, of length 1.

    `on_batch` is told how many batches are done, and of how many.

    Raises:
        ModelError: the model gives numbers that are not finite.
    """
    if not texts:
        raise DataError("there are no texts to embed", "check the rows of the data set")
    was_training, body = model_body.training, model_body.to(device).eval()
    try:
        batches = text_batches(tokenizer, texts, batch_size=batch_size, max_length=max_length)
        read = []
        for done, batch in enumerate(batches):
            on_batch(done, len(batches))
            read.append((batch, _pooled(body, **batch.inputs(device))))
        embeddings_NH = in_order(read)
    finally:
        body.train(was_training)
    if not embeddings_NH.isfinite().all():
        raise ModelError("the teacher's embeddings are not all finite numbers", "load it with `dtype: float32`")
    return embeddings_NH


def fit_probe(
    embeddings_NH: Tensor,
    labels_N: Tensor,
    num_classes: int,
    *,
    l2: float | None = None,
    seed: int,
    on_fit: OnBatch = watched_by_nobody,
) -> Probe:
    """Multinomial logistic regression: the minimum of mean cross-entropy + l2/2 (‖W‖² + ‖b‖²), in 64 bits.

    The penalty on the bias is what gives a class without a labelled row a finite one, and the minimum is a single
    point. Without `l2`, the one of `STRENGTHS` with the best log-likelihood over 5 folds, drawn under `seed`. `on_fit`
    is told how many fits of these are done, and of how many.

    Raises:
        DataError: there are too few labelled rows, or labels outside of the classes.
    """
    if len(labels_N) == 0 or (l2 is None and len(labels_N) < 2):
        raise DataError(
            f"a probe cannot be fitted to {len(labels_N)} labelled rows", "label more rows; two are the least"
        )
    if labels_N.min() < 0 or labels_N.max() >= num_classes:
        raise DataError(f"labels should be 0 to {num_classes - 1}", "check the label column")
    inputs_NK, labels_N = _with_constant(embeddings_NH), labels_N.detach().cpu().long()
    if l2 is None:
        l2 = _cross_validated(inputs_NK, labels_N, num_classes, seed, on_fit)
    weight_CK = _minimum(inputs_NK, labels_N, l2, torch.zeros(num_classes, inputs_NK.shape[1], dtype=torch.float64))
    weight_CK = weight_CK.float()
    return Probe(weight_CK[:, :-1].contiguous(), weight_CK[:, -1].contiguous(), l2)


def _with_constant(embeddings_NH: Tensor) -> Tensor:
    return F.pad(embeddings_NH.detach().cpu().double(), (0, 1), value=1.0)


def _cross_validated(inputs_NK: Tensor, labels_N: Tensor, num_classes: int, seed: int, on_fit: OnBatch) -> float:
    """From strong to weak penalties, each fit starting from the former; of equally good ones, the strongest."""
    order_N = torch.randperm(len(labels_N), generator=torch.Generator().manual_seed(seed))
    log_likelihood = dict.fromkeys(STRENGTHS, 0.0)
    folds = order_N.chunk(min(FOLDS, len(labels_N)))
    for fold, held_out in enumerate(folds):
        train = torch.ones(len(labels_N), dtype=torch.bool)
        train[held_out] = False
        weight_CK = torch.zeros(num_classes, inputs_NK.shape[1], dtype=torch.float64)
        for done, l2 in enumerate(STRENGTHS):
            on_fit(fold * len(STRENGTHS) + done, len(folds) * len(STRENGTHS))
            weight_CK = _minimum(inputs_NK[train], labels_N[train], l2, weight_CK, tolerance=1e-5)
            loss = F.cross_entropy(inputs_NK[held_out] @ weight_CK.T, labels_N[held_out], reduction="sum")
            log_likelihood[l2] -= loss.item()
    return max(STRENGTHS, key=lambda l2: log_likelihood[l2])


def _minimum(inputs_NK: Tensor, labels_N: Tensor, l2: float, start_CK: Tensor, *, tolerance: float = 1e-9) -> Tensor:
    """L-BFGS until no part of the gradient is larger than `tolerance`; weak penalties need its long memory."""
    weight_CK = start_CK.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight_CK],
        max_iter=5_000,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        history_size=100,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs_NK @ weight_CK.T, labels_N) + 0.5 * l2 * weight_CK.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight_CK.detach()


def save_probe(probe: Probe, file: Path) -> None:
    """Writes a probe as safetensors, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = {"weight": probe.weight_CH.contiguous(), "bias": probe.bias_C.contiguous()}
    content = save(tensors, metadata={"kind": _KIND, "l2": repr(probe.l2)})
    aside = None
    try:
        with NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as stream:
            aside = Path(stream.name)
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
    except OSError as error:
        if aside:
            aside.unlink(missing_ok=True)
        raise OutputError(f"{file} cannot be written: {error.strerror}", "check the folder and the disk") from error


def load_probe(file: Path) -> Probe:
    """Reads what `save_probe` wrote.

    Raises:
        ModelError: the file is missing, broken, or no probe.
    """
    hint = "remove it, and it is fitted again"
    try:
        with safe_open(file, "pt") as tensors:
            metadata = tensors.metadata() or {}
            if metadata.get("kind") != _KIND:
                raise ModelError(f"{file} is no probe", hint)
            probe = Probe(
                tensors.get_tensor("weight").clone(), tensors.get_tensor("bias").clone(), float(metadata["l2"])
            )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{file} is no sound probe: {error}", hint) from error
    if probe.weight_CH.ndim != 2 or probe.bias_C.shape != probe.weight_CH.shape[:1] or not math.isfinite(probe.l2):
        raise ModelError(f"{file} holds a probe whose parts do not fit", hint)
    return probe
