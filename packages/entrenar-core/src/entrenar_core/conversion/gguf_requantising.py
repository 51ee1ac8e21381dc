"""A GGUF in another quantisation: its tensors keep their names and its metadata stays what it is."""

from collections.abc import Mapping
from pathlib import Path

from entrenar_core.errors import ModelError
from entrenar_core.formats.gguf import read_header
from entrenar_core.formats.gguf_values import Kind, Value

_OF_TYPES = ("general.file_type", "general.quantization_version", "general.alignment")


def kept_metadata(path: Path) -> Mapping[str, Value]:
    """The metadata of a file with the type of each value, but for what hangs on the types of its tensors.

    Raises:
        ModelError: the file cannot be read any more, or has lists of lists, which no model needs.
    """
    header = read_header(path, arrays=True)
    found: dict[str, Value] = {}
    for key, value in header.metadata.items():
        kind, items = header.kinds[key]
        if items == Kind.ARRAY:
            raise ModelError(f"{key} of {path} is a list of lists", "convert the original model instead")
        if key not in _OF_TYPES and not key.startswith(("split.", "quantize.imatrix.")):
            found[key] = Value(Kind(kind), value, None if items is None else Kind(items))
    return found
