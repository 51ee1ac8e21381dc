"""Numbers about a model: how many parameters it has, and how much room its weights take on disk."""

from pathlib import Path

from torch import nn

from entrenar_core.formats import format_of


def parameter_count(model: nn.Module) -> int:
    """Numbers that the model holds as parameters, quantised or not; what is tied counts once."""
    return sum(map(_numbers, model.parameters()))


def _numbers(parameter: nn.Parameter) -> int:
    """bitsandbytes holds two weights of four bits in a number."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def saved_bytes(folder: Path) -> int:
    """Bytes of the weight files on top of a folder, without config, tokenizer and indices."""
    files = (file for file in folder.iterdir() if file.is_file() and file.suffix != ".json")
    return sum(file.stat().st_size for file in files if _holds_weights(file.name))


def _holds_weights(name: str) -> bool:
    return format_of(name) is not None or name.startswith("adapter_model.")
