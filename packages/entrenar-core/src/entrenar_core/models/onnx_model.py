"""An ONNX graph as a module that is called like any other model.

It is run by onnxruntime, and no library of custom operators is ever loaded for it: what a file asks for that is not
built into onnxruntime is an error.

Shapes: B rows, T positions, V classes or vocabulary, H width.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import ModelError
from entrenar_core.formats.onnx import OnnxValue, read_graph
from entrenar_core.models.heads import CLASSIFICATION
from entrenar_core.models.onnx_rules import (
    IDS,
    MASK,
    NO_RUNTIME,
    POSITIONS,
    SENTENCE,
    TYPES,
    check_graph,
    has_runtime,
    output_of,
    width_of,
)

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_DTYPES: dict[str, Any] = {
    "int64": np.int64,
    "int32": np.int32,
    "bool": np.bool_,
    "float": np.float32,
    "float16": np.float16,
}
_GPU = ("CUDAExecutionProvider", "ROCMExecutionProvider")
_QUIET = 4  # errors come as exceptions


@dataclass(frozen=True, slots=True)
class Hidden:
    """What a bare model gives, (B, T, H)."""

    last_hidden_state: Tensor


class OnnxModel(nn.Module):
    """A graph that is given ids and mask, and gives logits, vectors, or hidden states.

    `num_parameters` are in its file. `heads` are how many heads of keys and values a layer has, and their width, for
    graphs of decoders that read earlier ones.
    """

    def __init__(
        self,
        session: "InferenceSession",
        inputs: tuple[OnnxValue, ...],
        output: str,
        heads: tuple[int | None, int | None],
        num_parameters: int,
    ) -> None:
        super().__init__()
        self.session, self.inputs, self.output, self.heads = session, inputs, output, heads
        self.num_parameters = num_parameters

    @property
    def provider(self) -> str:
        """What runs it, such as `CPUExecutionProvider`."""
        return str(self.session.get_providers()[0])

    @property
    def gives_sentences(self) -> bool:
        """Whether it pools by itself."""
        return self.output == SENTENCE

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor | Hidden:
        """Ids and mask (B, T) to logits (B, T, V) or (B, V), to vectors (B, H), or to hidden states; on their device.

        Raises:
            ModelError: onnxruntime cannot run the graph.
        """
        given = {IDS: input_ids, MASK: attention_mask, TYPES: torch.zeros_like(input_ids)}
        given[POSITIONS] = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        found = torch.from_numpy(self._run({name: tensor.cpu().numpy() for name, tensor in given.items()}))
        found = found.to(input_ids.device)
        return found if self.output in ("logits", SENTENCE) else Hidden(found)

    def _run(self, given: Mapping[str, "np.ndarray[Any, Any]"]) -> "np.ndarray[Any, Any]":
        feeds = {}
        for value in self.inputs:
            array = given[value.name] if value.name in given else np.zeros(self._past(value, len(given[IDS])))
            feeds[value.name] = array.astype(_DTYPES[value.type])
        try:
            (found,) = self.session.run([self.output], feeds)
        except Exception as error:  # onnxruntime's errors have no class in common
            raise ModelError(f"onnxruntime cannot run the teacher: {_first_line(error)}", "export it again") from error
        return np.asarray(found)

    def _past(self, value: OnnxValue, rows: int) -> tuple[int, ...]:
        """No earlier keys and values: (B, heads, 0, width of a head)."""
        assert value.shape is not None, "checked"
        usual = (rows, self.heads[0], 0, self.heads[1])
        sizes = [size if isinstance(size, int) else own for size, own in zip(value.shape, usual, strict=True)]
        if None in sizes:
            raise ModelError(
                f"neither the graph nor config.json says the sizes of {value.name}",
                "export it again, such as with `optimum-cli export onnx`",
            )
        return tuple(size or 0 for size in sizes)


def load_onnx(artifact: ModelArtifact, task: str, device: torch.device) -> OnnxModel:
    """The model of an ONNX artifact, tried on a few tokens; on a GPU where `device` is one and onnxruntime knows it.

    Raises:
        ModelError: onnxruntime is missing or cannot run the graph; or the graph is not of the task or the config.
    """
    if not has_runtime():
        raise ModelError(*NO_RUNTIME)
    if problems := check_graph(artifact, task):
        raise ModelError(problems[0].message, problems[0].hint)
    graph, architecture = read_graph(artifact.weight_files[0]), artifact.architecture
    output = output_of(graph, task)
    assert output is not None, "checked"
    width = architecture.head_dim
    if width is None and architecture.hidden_size and architecture.num_heads:
        width = architecture.hidden_size // architecture.num_heads
    heads = architecture.num_kv_heads or architecture.num_heads, width
    model = OnnxModel(_session(artifact, device), graph.inputs, output.name, heads, graph.num_parameters)
    _try(model, artifact, task)
    return model


def _session(artifact: ModelArtifact, device: torch.device) -> "InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = torch.get_num_threads()
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.load_model_format", "ONNX")  # as it was read and checked
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        there = [name for name in _GPU if name in onnxruntime.get_available_providers()]
        providers = [(name, {"device_id": device.index or 0}) for name in there] + providers
    try:
        return onnxruntime.InferenceSession(os.fspath(artifact.weight_files[0]), options, providers=providers)
    except Exception as error:  # onnxruntime's errors have no class in common
        raise ModelError(
            f"onnxruntime cannot load {artifact.reference}: {_first_line(error)}",
            "export it again for ONNX's own operators, or take a newer onnxruntime",
        ) from error


def _try(model: OnnxModel, artifact: ModelArtifact, task: str) -> None:
    """Two rows of different lengths: shapes that the file leaves open show when it runs."""
    ids_BT = torch.zeros(2, 3, dtype=torch.long)
    found = model(ids_BT, torch.tensor([[1, 1, 1], [1, 1, 0]]))
    tensor = found.last_hidden_state if isinstance(found, Hidden) else found
    shape: tuple[int, ...] = (2,) if task == CLASSIFICATION or model.gives_sentences else (2, 3)
    width = width_of(artifact, task) or tensor.shape[-1]
    if tensor.shape != (*shape, width):
        raise ModelError(
            f"{artifact.reference} gives `{model.output}` of the shape {tuple(tensor.shape)} for two rows of three "
            f"tokens, and by its config.json it is {(*shape, width)}",
            "check that config.json and the graph belong together",
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
