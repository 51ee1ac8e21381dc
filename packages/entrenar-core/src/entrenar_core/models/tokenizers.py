"""Tokenizers of teachers and students, as they are used: fast, and able to pad."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import ModelError
from entrenar_core.models.quiet import explaining
from entrenar_core.models.tokenizer_facts import NO_TOKENIZER


def load_tokenizer(artifact: ModelArtifact, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The artifact's own fast tokenizer, from a folder or from inside a GGUF; nothing is downloaded.

    It has a pad token: its own, else its end-of-text token, else its unknown token, so that no id is added to which the
    model has no embedding.

    Raises:
        ModelError: there is no tokenizer, it cannot be loaded, or no token can pad.
    """
    name, path = artifact.reference, artifact.tokenizer_path
    if path is None:
        raise ModelError(f"{name} has no tokenizer", NO_TOKENIZER)
    place, inside = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
    with explaining("tokenizer", name, "fetch or export the model again"):
        tokenizer = AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=trust_remote_code, **inside
        )
        if not tokenizer.is_fast:
            raise ModelError(f"the tokenizer of {name} has no fast form", "save it as tokenizer.json with transformers")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"the tokenizer of {name} has no token to pad with, nor an end-of-text or unknown token",
            "name one under `pad_token` in its tokenizer_config.json",
        )
    return tokenizer
