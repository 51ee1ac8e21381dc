"""What a model was trained to do, read from its files without loading it."""

from collections.abc import Iterable, Mapping
from typing import Any

from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.models.sentence_files import is_sentence_encoder

CAUSAL_LM, CLASSIFICATION, EMBEDDING = "causal-lm", "sequence-classification", "embedding"
MASKED_LM, TAGGING = "masked-lm", "token-classification"
LANGUAGE = (CAUSAL_LM, MASKED_LM)
"""Tasks whose logits are over tokens."""
CLASSIFYING = (CLASSIFICATION, TAGGING)
"""Tasks whose logits are over classes, with a head that may be new."""
OF_TOKENS = (*LANGUAGE, TAGGING)
"""Tasks in which the teacher reads the student's tokens, since what counts are tokens."""
UNTOLD = (
    "the task cannot be told from the models: the teacher has neither a classification head nor one for tokens",
    f"to classify, fit the teacher to the labels with `teacher.finetune: {{method: probe}}`; for language models, set "
    f"`task: {CAUSAL_LM}`; for vectors of sentences, `task: {EMBEDDING}`",
)
"""What is wrong where `infer_task` finds nothing, and what to do."""
NO_MASKED_HEAD = (
    "has no trained head for masked tokens",
    "name a model that was saved as …ForMaskedLM, as BERT and RoBERTa are",
)
"""What is wrong with a teacher that cannot tell masked tokens, and what to do."""
_TASKS = {
    "ForCausalLM": CAUSAL_LM,
    "LMHeadModel": CAUSAL_LM,
    "ForMaskedLM": MASKED_LM,
    "ForSequenceClassification": CLASSIFICATION,
    "ForTokenClassification": TAGGING,
}

# The first part of a weight's name, where it belongs to the head of some task and not to the body of the model.
CLASSIFICATION_HEADS = ("classifier", "score", "classification_head", "pre_classifier", "logits_proj")
OTHER_HEADS = (
    "cls",
    "discriminator_predictions",
    "generator_lm_head",
    "generator_predictions",
    "lm_head",
    "qa_outputs",
    "vocab_layer_norm",
    "vocab_projector",
    "vocab_transform",
)


def infer_task(teacher: ModelArtifact, student: ModelArtifact | None, *, fitted: bool = False) -> str | None:
    """The task that the models were trained for, or None when undecided.

    A teacher that classifies decides alone, since classifiers are also made of language models; so does a sentence
    encoder, unless it is `fitted` to labels or the student classifies. A bare encoder says nothing, and models that
    disagree decide nothing. Classifiers begin as masked language models, so a student that is one says nothing, and
    neither does a teacher that will be fitted.
    """
    found = _task_of(teacher)
    other = _task_of(student) if student else None
    if found is None and other not in CLASSIFYING and not fitted and is_sentence_encoder(teacher):
        return EMBEDDING
    if fitted and found == MASKED_LM:
        found = None
    if other == MASKED_LM:
        other = None
    if found in CLASSIFYING or other in (None, found):
        return found
    return other if found is None else None


def headless(artifact: ModelArtifact, task: str) -> tuple[str, str]:
    """What is wrong with a teacher without a head for the classes of its task, and what to do."""
    if task == TAGGING:
        what, fit = "head that tags words, so it knows nothing of these tags", "method: full"
    else:
        what, fit = "classification head, so it knows nothing of these labels", "method: probe"
    return f"{artifact.reference} has no trained {what}", f"fit it first: `teacher.finetune: {{{fit}}}`"


def predicts_masked(artifact: ModelArtifact) -> bool:
    """Whether the artifact may have a head for masked tokens; models that were saved from pre-training have it, too."""
    classes = artifact.architecture.classes
    return _task_of(artifact) == MASKED_LM or any(name.endswith("ForPreTraining") for name in classes)


def _task_of(artifact: ModelArtifact) -> str | None:
    if artifact.format is WeightFormat.GGUF:
        return CAUSAL_LM if not _is_encoder(artifact.config) else None
    return task_named(artifact.architecture.classes)


def task_named(classes: Iterable[str]) -> str | None:
    """The task that the names of classes in a configuration say, such as `LlamaForCausalLM`."""
    named = [name for name in classes if isinstance(name, str)]  # a file may hold anything
    return next((task for name in named for end, task in _TASKS.items() if name.endswith(end)), None)


def _is_encoder(metadata: Mapping[str, Any]) -> bool:
    """A GGUF of an encoder says that its attention is not causal."""
    return metadata.get(f"{metadata.get('general.architecture')}.attention.causal") is False


def head_labels(artifact: ModelArtifact, task: str = CLASSIFICATION) -> tuple[str, ...] | None:
    """The names of the classes that a trained head of a classifying task tells apart, in the order of their ids, or
    None where there is no such head: neither a config with names nor a head's weights are enough alone. Of weights that
    are not here the config is believed; of ONNX, whose weights have no names to go by, the graph is compared with the
    config elsewhere (`check_graph`).

    Raises:
        ModelError: the names cannot be read, or the weights cannot.
    """
    if artifact.format is WeightFormat.GGUF or not artifact.is_here or _task_of(artifact) != task:
        return None
    if (
        artifact.weight_files
        and artifact.format is not WeightFormat.ONNX
        and not any(name.partition(".")[0] in CLASSIFICATION_HEADS for name in _weight_names(artifact))
    ):
        return None
    names = artifact.config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})  # what transformers leaves out
    try:
        by_id = {int(id_): str(name) for id_, name in names.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{artifact.reference}: `id2label` in its config is no table of names") from error
    if sorted(by_id) != list(range(len(by_id))):
        raise ModelError(f"{artifact.reference}: the ids in `id2label` of its config are not 0 to {len(by_id) - 1}")
    if len(set(by_id.values())) < len(by_id):
        raise ModelError(
            f"{artifact.reference}: two classes in `id2label` of its config have one name",
            "give each class a name of its own",
        )
    return tuple(by_id[id_] for id_ in range(len(by_id)))


def _weight_names(artifact: ModelArtifact) -> Iterable[str]:
    if artifact.format is WeightFormat.PYTORCH:
        from entrenar_core.models.weights import open_weights

        return open_weights(artifact)
    from safetensors import SafetensorError, safe_open

    names: list[str] = []
    for file in artifact.weight_files:
        try:
            with safe_open(file, "numpy") as tensors:
                names += tensors.keys()
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} is no sound safetensors file: {error}", "fetch or export it again") from error
    return names
