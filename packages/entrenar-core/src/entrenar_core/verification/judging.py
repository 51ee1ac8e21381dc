"""The original's answers beside what llama.cpp said, and, where they are far apart, what noise does to the original."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import ModelError
from entrenar_core.models.heads import CAUSAL_LM, CLASSIFICATION, EMBEDDING
from entrenar_core.models.sentence_files import pooling_of
from entrenar_core.verification.asking import Told
from entrenar_core.verification.comparing import cosines, distances, joined, log_softmax, told_cells
from entrenar_core.verification.limits import Limits
from entrenar_core.verification.result import (
    ClassAgreement,
    Predictions,
    VectorAgreement,
    class_reasons,
    prediction_reasons,
    vector_reasons,
)
from entrenar_core.verification.rows import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from entrenar_core.losses.pooling import Pool


def compare_predictions(
    artifact: ModelArtifact, rows: Sequence[Row], told: Sequence[Told], limits: Limits
) -> Predictions:
    """What llama.cpp said of the rows beside what the original says of them.

    Raises:
        ModelError: the original cannot be loaded.
    """
    import numpy as np

    from entrenar_core.models.loading import load_model
    from entrenar_core.verification.original import add_noise, cells, running

    model = load_model(artifact, CAUSAL_LM)
    with running(artifact):
        original = cells(model, rows, told)
    labels = [np.array([row.ids[place + 1] for place in row.places]) for row in rows]
    theirs = joined([told_cells(said, labels_P) for said, labels_P in zip(told, labels, strict=True)])
    found = Predictions(
        positions=len(original.label_P),
        told=told[0].tokens_PK.shape[1],
        told_share=float(np.mean([np.exp(said.log_p_PK).sum(-1).mean() for said in told]).clip(max=1.0)),
        is_exact=all(said.is_whole for said in told),
        distances=distances(original, theirs),
        original_perplexity=float(np.exp(-original.label_P.mean())),
        perplexity=float(np.exp(-theirs.label_P.mean())),
    )
    if not prediction_reasons(found, limits):
        return found
    add_noise(model, limits.error)
    with running(artifact):
        return replace(found, noise=distances(original, cells(model, rows, told)))


def compare_vectors(
    artifact: ModelArtifact,
    rows: Sequence[Row],
    made: "Sequence[NDArray[np.float64]]",
    pool: "Pool | None",
    limits: Limits,
) -> VectorAgreement:
    """Vectors that llama.cpp made beside those of the original. `pool` is how the GGUF says that they are pooled.

    Raises:
        ModelError: the original cannot be loaded, or pools otherwise.
    """
    import numpy as np

    from entrenar_core.models.loading import load_model
    from entrenar_core.verification.original import add_noise, running, vectors

    meant = pooling_of(artifact)
    if meant not in (None, pool):
        raise ModelError(
            f"the vector of a text is {_POOLED[meant]} in {artifact.reference}, and {_POOLED[pool]} in the GGUF",
            "export it again: the GGUF was made with another pooling",
        )
    model = load_model(artifact, EMBEDDING)
    with running(artifact):
        original_NH, theirs_NH = np.concatenate(vectors(model, rows, pool)), np.concatenate(made)
    if original_NH.shape != theirs_NH.shape:
        raise ModelError(
            f"llama.cpp makes vectors of the size {theirs_NH.shape}, and {artifact.reference} of {original_NH.shape}",
            "export it again",
        )
    cosine_N = cosines(original_NH, theirs_NH)
    found = VectorAgreement(len(rows), pool, float(cosine_N.min()), float(cosine_N.mean()))
    if not vector_reasons(found, limits):
        return found
    add_noise(model, limits.error)
    with running(artifact):
        noisy_N = cosines(original_NH, np.concatenate(vectors(model, rows, pool)))
    return replace(found, noise_min=float(noisy_N.min()))


def compare_classes(
    artifact: ModelArtifact, rows: Sequence[Row], made: "Sequence[NDArray[np.float64]]", limits: Limits
) -> ClassAgreement:
    """The classes of texts beside those of the original, by the logits that llama.cpp tells.

    Raises:
        ModelError: the original cannot be loaded.
    """
    import numpy as np

    from entrenar_core.models.loading import load_model
    from entrenar_core.verification.comparing import kl
    from entrenar_core.verification.original import add_noise, class_logits, running

    model = load_model(artifact, CLASSIFICATION)
    with running(artifact):
        logits_NC, theirs_NK = np.concatenate(class_logits(model, rows)), np.concatenate(made)
    told = min(logits_NC.shape[1], theirs_NK.shape[1])
    original_NK, model_NK = log_softmax(logits_NC[:, :told]), log_softmax(theirs_NK[:, :told])
    kl_N = kl(original_NK, model_NK)
    same = float((original_NK.argmax(-1) == model_NK.argmax(-1)).mean())
    found = ClassAgreement(len(rows), logits_NC.shape[1], told, float(kl_N.mean()), float(kl_N.max()), same)
    if not class_reasons(found, limits):
        return found
    add_noise(model, limits.error)
    with running(artifact):
        noisy_NK = log_softmax(np.concatenate(class_logits(model, rows))[:, :told])
    return replace(found, noise_kl=float(kl(original_NK, noisy_NK).mean()))


_POOLED = {None: "not pooled", "mean": "the mean of its tokens", "first": "its first token", "last": "its last token"}
