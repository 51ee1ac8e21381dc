"""What could be done so that a generation fits: each change by itself."""

from collections.abc import Iterator
from dataclasses import replace

from entrenar_core.memory.jobs import InferenceJob
from entrenar_core.models.teacher_rules import has_bitsandbytes


def changed_generations(job: InferenceJob) -> Iterator[tuple[str, InferenceJob]]:
    """How to ask for a change, and the changed job; first those that change no answer."""
    if job.batch_size > 1:
        yield f"--batch-size {job.batch_size // 2}", replace(job, batch_size=job.batch_size // 2)
    if job.context > 1:
        yield f"--context {job.context // 2}", replace(job, context=job.context // 2)
    kept = job.cache_dtype or job.model.dtype
    if kept == "float32":
        yield "--cache-dtype float16", replace(job, cache_dtype="float16")
    elif kept in ("float16", "bfloat16"):
        yield "--cache-dtype q8_0", replace(job, cache_dtype="q8_0")
    if job.model.stored_bytes is not None or job.model.load_in is not None:
        return
    if job.model.dtype == "float32":
        yield "--weights bf16", replace(job, model=replace(job.model, dtype="bfloat16"))
    if has_bitsandbytes():
        quantised = replace(job.model, load_in="nf4", double_quantized=True)
        yield "--weights nf4", replace(job, model=quantised)
