"""What eight bits do to a graph: on which rows that is tried, which matrices they would harm, and what they changed.

Inputs of a matrix get one scale for all when they are rounded. Where one number is hundreds of times larger than the
others are, as in a few layers of most language models, the others become zero; such matrices stay in 32 bits.

Source for such numbers: Dettmers et al. 2022, LLM.int8(); Sun et al. 2024, Massive Activations in LLMs.

Shapes: B rows, T positions, N real tokens or rows, V classes, vocabulary or width.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from entrenar_core.errors import ModelError
from entrenar_core.exporting.onnx.callers import Caller
from entrenar_core.exporting.onnx.checking import Expected, Feed, batches, open_session, run
from entrenar_core.exporting.onnx.result import Int8Change
from entrenar_core.models.heads import CAUSAL_LM, EMBEDDING
from entrenar_core.models.loading import seeded
from entrenar_core.models.onnx_rules import IDS, MASK

ROWS, TOKENS = 4, 32
MOST_SPIKED = 60.0
"""The largest input of a matrix over their root mean square, beyond which it stays in 32 bits.

Measured on SmolLM2-135M over 160 tokens of English: of all its 211 matrices in eight bits, the output moves by 30 % and
agrees on the likeliest token at 48 % of positions, at 138 MB (541 in 32 bits); with the 15 beyond 60 left out 7 %,
83 %, 178 MB; with the 30 beyond 30 left out 7 %, 82 %, 217 MB; with the 112 beyond 20 left out 3 %, 94 %, 389 MB.
"""
_SEED = 0


def trial_feed(caller: Caller, task: str, longest: int | None) -> Feed:
    """What eight bits are tried on, the same for the same model: of a language model rows that it draws from itself,
    since random tokens are no text to it; of others random tokens.
    """
    tokens = min(TOKENS, longest or TOKENS)
    (feed,) = batches(caller, longest, [(ROWS, tokens)])
    whole = {**feed, MASK: torch.ones_like(feed[MASK])}
    if task != CAUSAL_LM:
        return whole
    model: Any = caller.model
    with seeded(_SEED):
        ids_BT = model.generate(
            input_ids=feed[IDS][:, :1] if model.config.bos_token_id is None else _begun(model.config.bos_token_id),
            attention_mask=torch.ones(ROWS, 1, dtype=torch.long),
            do_sample=True,
            top_k=0,
            min_new_tokens=tokens - 1,
            max_new_tokens=tokens - 1,
            pad_token_id=0,
        )
    return {**whole, IDS: ids_BT}


def _begun(token: int | list[int]) -> Tensor:
    return torch.full((ROWS, 1), token if isinstance(token, int) else token[0])


@torch.no_grad()
def spiked(caller: Caller, feed: Feed) -> frozenset[str]:
    """The names of the weights, every one of tied ones, some input of which is far larger than the others."""
    found: dict[int, float] = defaultdict(float)
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in caller.model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    with _watched(caller.model, found):
        caller(**feed)
    return frozenset(name for weight, spike in found.items() if spike > MOST_SPIKED for name in names[weight])


@contextmanager
def _watched(model: nn.Module, found: dict[int, float]) -> Iterator[None]:
    """Notes how far the largest input of each matrix stands out, by its weight."""

    def note(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        scale = float(given[0].square().mean().sqrt())
        weight = id(module.weight)
        found[weight] = max(found[weight], float(given[0].abs().max()) / scale if scale else 0.0)

    matrices = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    handles = [module.register_forward_pre_hook(note) for module in matrices]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def change_of(file: Path, wanted: Expected, task: str, *, matrices: int, kept: int) -> Int8Change:
    """How far a graph in eight bits is from what torch gives in 32, in its first output.

    Raises:
        ModelError: onnxruntime cannot run it, or it gives what is no number.
    """
    found = run(open_session(file), wanted.feed)
    is_, should = (wanted.real(outputs[0]).flatten(0, -2).double() for outputs in (found, wanted.outputs))
    if not is_.isfinite().all():
        raise ModelError("the graph in eight bits gives numbers that are not finite", "export it without int8")
    moved = is_ - should
    agreement = None if task == EMBEDDING else float((is_.argmax(-1) == should.argmax(-1)).double().mean())
    return Int8Change(
        largest_difference=float(moved.abs().max()),
        relative_rms=float(moved.square().mean().sqrt() / should.square().mean().sqrt()),
        cosine=float(nn.functional.cosine_similarity(is_, should, dim=-1).mean()),
        top_1_agreement=agreement,
        shape=(wanted.feed[IDS].shape[0], wanted.feed[IDS].shape[1]),
        matrices=matrices,
        kept=kept,
    )
