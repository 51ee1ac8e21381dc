"""Numbers about a model: how many parameters it has, and how much room its weights take on disk."""

from pathlib import Path

from torch import nn

from entrenar_core.formats import format_of


def parameter_count(model: nn.Module) -> int:
    """Numbers that the model holds as parameters; what is tied counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def saved_bytes(folder: Path) -> int:
    """Bytes of the weight files on top of a folder, without config, tokenizer and indices."""
    files = (file for file in folder.iterdir() if file.is_file() and file.suffix != ".json")
    return sum(file.stat().st_size for file in files if format_of(file.name) is not None)
