"""The tokenizer of a Hugging Face folder as the metadata of a GGUF, so that llama.cpp cuts texts as it does."""

from entrenar_core.conversion.tokens.deviations import Deviation
from entrenar_core.conversion.tokens.reading import SavedTokenizer, read_tokenizer
from entrenar_core.conversion.tokens.trial_texts import TRIAL_TEXTS
from entrenar_core.conversion.tokens.writing import TokenizerMetadata, tokenizer_metadata

__all__ = ["TRIAL_TEXTS", "Deviation", "SavedTokenizer", "TokenizerMetadata", "read_tokenizer", "tokenizer_metadata"]
