"""A model as an ONNX graph that onnxruntime and others run.

`exporting` does it, with `requirements` (what can be exported), `callers` (a model as tensors in, tensors out),
`tracing` (the graph, by torch's exporter), `checking` (onnxruntime beside torch), `int8` and `outliers` (matrices in
eight bits, and which of them not) and `files` (what is written); `result` has what was measured.
"""

from typing import TYPE_CHECKING

from entrenar_core.lazily import importing

if TYPE_CHECKING:
    from entrenar_core.exporting.onnx.exporting import export_onnx
    from entrenar_core.exporting.onnx.result import Int8Change, OnnxExport

__all__ = ["Int8Change", "OnnxExport", "export_onnx"]

__getattr__ = importing(__name__, {"export_onnx": "exporting", "Int8Change": "result", "OnnxExport": "result"})


def __dir__() -> list[str]:
    return __all__
