"""The tokenizer that a GGUF has to agree with: what the files of the original say, before any library changes it.

transformers builds some tokenizers anew from their class, and cuts other words than `tokenizer.json` says then.
"""

from typing import TYPE_CHECKING

from entrenar_core.artifact import ModelArtifact
from entrenar_core.conversion.gguf_vocabulary import UnknownTokenizerError, UnsoundVocabularyError, build
from entrenar_core.conversion.tokens.reading import read_tokenizer
from entrenar_core.errors import ModelError
from entrenar_core.formats.gguf import read_header

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def reference_tokenizer(artifact: ModelArtifact) -> "Tokenizer":
    """The tokenizer of a folder, or of a GGUF that is the original.

    Raises:
        ModelError: there is none, it is broken, or of a kind that is not known here.
    """
    place = artifact.tokenizer_path
    if place is None or place.is_dir():
        return read_tokenizer(place or artifact.path).library
    try:
        return build(read_header(place, arrays=True).metadata)
    except (UnknownTokenizerError, UnsoundVocabularyError) as error:
        raise ModelError(f"{place}: {error}", "verify against the folder that the GGUF was made of") from error
