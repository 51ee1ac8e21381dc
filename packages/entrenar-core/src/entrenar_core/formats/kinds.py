"""The formats of weights: the one table that says what each is called and which module reads it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class WeightFormat(StrEnum):
    """How weights are stored."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    PYTORCH = "pytorch"
    ONNX = "onnx"
    APR = "apr"
    APR_JSON = "apr-json"


@dataclass(frozen=True, slots=True)
class Format:
    """A row of `FORMATS`.

    `module` has `read(source) -> Header` and lies beside this one; so does the `writer`, with `write(path, tensors,
    metadata)` and the names of the dtypes that it `WRITES`, where entrenar writes the format. `loads`: transformers,
    llama.cpp or onnxruntime run a model from it, so that it may be a teacher; of an ONNX file the weights are not for a
    student to start from. `pickles`: what reads it elsewhere may run code that is in it.
    """

    title: str
    suffixes: tuple[str, ...]
    module: str
    writer: str | None = None
    loads: bool = True
    pickles: bool = False


FORMATS: Mapping[WeightFormat, Format] = {
    WeightFormat.SAFETENSORS: Format("safetensors", (".safetensors",), "safetensors", "safetensors_writer"),
    WeightFormat.GGUF: Format("GGUF", (".gguf",), "gguf", "gguf_writer"),
    WeightFormat.PYTORCH: Format("PyTorch", (".bin", ".pt", ".pth"), "pytorch", "pytorch_writer", pickles=True),
    WeightFormat.ONNX: Format("ONNX", (".onnx",), "onnx"),
    WeightFormat.APR: Format("APR", (".apr",), "apr", "apr_writer", loads=False),
    WeightFormat.APR_JSON: Format("APR as JSON", (".apr.json",), "apr_json", "apr_json_writer", loads=False),
}
"""Every format; where a folder holds several, the first of these is preferred."""

LOADED = tuple(name for name, row in FORMATS.items() if row.loads)
"""The formats that models are loaded from."""
