"""Which models can be exported to ONNX, for which task; told before anything is loaded, and without torch."""

from importlib.util import find_spec

from entrenar_core.architectures import known_families
from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.models.heads import (
    CAUSAL_LM,
    CLASSIFICATION,
    CLASSIFYING,
    EMBEDDING,
    MASKED_LM,
    TAGGING,
    head_labels,
    infer_task,
)

OPSETS = range(18, 24)
"""The versions of ONNX's operators that torch's exporter writes without converting between them."""
OPSET = 20
"""What torch's exporter takes by itself: onnxruntime has all of it since 1.17."""
TASKS = (CAUSAL_LM, MASKED_LM, CLASSIFICATION, TAGGING, EMBEDDING)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_NEEDS = ("onnx", "onnxruntime", "onnxscript")


def require_tools() -> None:
    """Refuses where a package is missing.

    Raises:
        ModelError: the extra is not installed.
    """
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise ModelError(
            f"to write and check ONNX takes {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            "installed",
            "install what is missing with `pip install 'entrenar[onnx]'`",
        )


def opset_for(wanted: int | None) -> int:
    """The version of the operators to write.

    Raises:
        UsageError: torch's exporter does not write the one that is wanted.
    """
    if wanted is not None and wanted not in OPSETS:
        raise UsageError(
            f"an ONNX graph is written with opset {OPSETS[0]} to {OPSETS[-1]}, and {wanted} is asked for",
            f"take {min(max(wanted, OPSETS[0]), OPSETS[-1])}, or leave it out",
        )
    return wanted or OPSET


def task_for(source: ModelArtifact, wanted: str | None) -> str:
    """What the graph is for: what is wanted, else what the model was trained for, which for a model without a head is
    to give hidden states.

    Raises:
        UsageError: there is no such task.
        ModelError: the model has two parts or experts, reads no text, is a graph already, lacks the head of the task,
            or does not tell what it is for.
    """
    if wanted is not None and wanted not in TASKS:
        raise UsageError(f"{wanted} is no task of a model", f"it can be {', '.join(TASKS)}")
    _require_traceable(source)
    task = wanted or infer_task(source, None) or _bare(source)
    if task is None:
        raise ModelError(
            f"{source.reference} does not tell what it is for: its class is "
            f"{', '.join(source.architecture.classes) or 'not named'}",
            f"name the task: {', '.join(TASKS)}",
        )
    if task in CLASSIFYING and head_labels(source, task) is None:
        raise ModelError(
            f"{source.reference} has no trained head for {task}, and one of random numbers is not exported",
            "train one first, or name another task",
        )
    return task


def _bare(source: ModelArtifact) -> str | None:
    """Classes such as `BertModel`; GPT2LMHeadModel has told its task, and GPT2DoubleHeadsModel has two."""
    bare = any(name.endswith("Model") and "Head" not in name for name in source.architecture.classes)
    return EMBEDDING if bare else None


def _require_traceable(source: ModelArtifact) -> None:
    if source.format is WeightFormat.ONNX:
        raise ModelError(f"{source.reference} is ONNX already", "copy it, or name the model that it was made of")
    family = known_families().get(source.architecture.family or "")
    if source.config.get("is_encoder_decoder") is True or (family is not None and family.kind == "encoder-decoder"):
        what = "has an encoder and a decoder"
    elif any(source.config.get(key) for key in _EXPERTS):
        what = "chooses among experts while it runs, which torch's exporter does not follow"
    elif family is not None and _sees(source):
        what = "reads more than text"
    else:
        return
    raise ModelError(
        f"{source.reference} is a {source.architecture.model_type}, which {what}: it is not exported to ONNX",
        f"take a decoder or an encoder of text, such as {', '.join(_of_text())}",
    )


def _sees(source: ModelArtifact) -> bool:
    return "vision_config" in source.config or source.architecture.vocab_size is None


def _of_text() -> list[str]:
    return [name for name, row in known_families().items() if row.flows is not None and row.kind != "encoder-decoder"]
