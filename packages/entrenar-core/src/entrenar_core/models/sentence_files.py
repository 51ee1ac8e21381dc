"""The files by which sentence-transformers says how a sentence encoder makes a vector of its tokens.

Source: `modules.json` and `1_Pooling/config.json` as sentence-transformers 5 reads and writes them.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from entrenar_core.artifact import MODULES, ModelArtifact
from entrenar_core.errors import ModelError
from entrenar_core.formats import read_json

Pool = Literal["first", "last", "mean"]
_FLAGS: Mapping[str, Pool] = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
_NAMES: Mapping[str, Pool] = {"cls": "first", "mean": "mean", "lasttoken": "last"}
_KNOWN = ("Transformer", "Pooling", "Normalize")
_TYPE = "sentence_transformers.models."


def is_sentence_encoder(artifact: ModelArtifact) -> bool:
    """Whether the model's folder has the modules of a sentence encoder; of a model whose files are not here, no."""
    return artifact.is_here and (artifact.path / MODULES).is_file()


def pooling_of(artifact: ModelArtifact) -> Pool | None:
    """Which vector is a sentence's, as the model's folder says; None where it says nothing.

    Raises:
        ModelError: it pools in another way, or changes vectors after pooling.
    """
    if not is_sentence_encoder(artifact):
        return None
    where = None
    for kind, path in _modules(artifact):
        if kind not in _KNOWN:
            raise ModelError(
                f"the sentence encoder {artifact.reference} has a module {kind}, which entrenar does not have",
                "take one that pools the tokens of a transformer and nothing else",
            )
        where = path if kind == "Pooling" else where
    if where is None:
        raise ModelError(f"{artifact.path / MODULES} names no module that pools", "name `pooling` for the model")
    folder = PurePosixPath(where)
    if folder.is_absolute() or ".." in folder.parts:
        raise ModelError(f"{artifact.path / MODULES}: the path {where} leads out of the folder", "correct it")
    return _mode(artifact, read_json(artifact.path / where / "config.json"))


def _modules(artifact: ModelArtifact) -> Iterable[tuple[str, str]]:
    """Kind and folder of each module."""
    try:
        listed = json.loads((artifact.path / MODULES).read_bytes())
        return [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in listed]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise ModelError(f"{artifact.path / MODULES} is no list of modules", "fetch the model again") from error


def _mode(artifact: ModelArtifact, config: Mapping[str, Any]) -> Pool:
    modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    named = config.get("pooling_mode")
    found = [_FLAGS.get(name) for name in modes] if named is None else [_NAMES.get(str(named))]
    if len(found) != 1 or found[0] is None:
        what = ", ".join(modes) if named is None else str(named)
        raise ModelError(
            f"the sentence encoder {artifact.reference} pools by {what or 'nothing'}, which entrenar does not do",
            "name `pooling` for the model: first, last or mean",
        )
    return found[0]


def sentence_files(pool: Pool, width: int, max_length: int) -> dict[str, Any]:
    """The JSON files, by name, that make the folder of a transformer a sentence encoder."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    return {
        MODULES: [
            {"idx": index, "name": str(index), "path": path, "type": _TYPE + kind}
            for index, (path, kind) in enumerate(modules)
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": width}
        | {flag: meant == pool for flag, meant in _FLAGS.items()},
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
    }
