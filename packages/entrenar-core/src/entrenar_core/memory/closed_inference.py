"""A generation that cannot be traced, by formulas, and what is taken for granted of any generation."""

from collections.abc import Iterator
from dataclasses import replace

from entrenar_core.errors import ModelError
from entrenar_core.memory.closed_form import closed_form
from entrenar_core.memory.estimate import Estimate, Phase
from entrenar_core.memory.generating import as_kept
from entrenar_core.memory.jobs import SEQ2SEQ, InferenceJob
from entrenar_core.memory.kv_cache import kv_bytes
from entrenar_core.models.heads import CAUSAL_LM


def closed_inference(job: InferenceJob, reason: str) -> Estimate:
    """What a generation holds by formulas: weights, keys and values of the whole context, and one layer's activations;
    `reason` says why it is not traced.

    Raises:
        UsageError: no cache is kept in the dtype.
    """
    found = closed_form(job, reason)
    writes = job.model.task in (CAUSAL_LM, SEQ2SEQ)
    said = list(found.assumptions)
    (moment,) = found.trace.moments
    held = as_kept(moment.held, job.model.stored_bytes, None)
    if writes:
        dtype = job.cache_dtype or job.model.dtype
        rows = -(-job.batch_size // job.sharding.devices)
        try:
            held["KV cache", dtype] = kv_bytes(job.model.config.to_dict(), rows, job.context, dtype).size_bytes
        except ModelError as error:
            said.append(f"nothing is counted for the cache: {error.message}")
    phase: Phase = "prefill" if writes else "forward"
    trace = replace(found.trace, moments=(replace(moment, phase=phase, held=held),))
    return replace(found, trace=trace, assumptions=(*said, *assumptions_of(job)))


def assumptions_of(job: InferenceJob) -> Iterator[str]:
    """What a prediction of a generation takes for granted, a sentence each."""
    if job.model.task not in (CAUSAL_LM, SEQ2SEQ):
        return
    yield f"the {job.context:,} tokens of a row are read at once, all rows are as long, and the last logits are made"
    if job.model.stored_bytes is not None:
        yield "weights are held as the file has them, as llama.cpp does; activations are those of transformers"
    if job.cache_dtype is not None and job.cache_dtype != job.model.dtype:
        yield f"keys and values are kept in {job.cache_dtype}, of which attention needs no copy in {job.model.dtype}"
