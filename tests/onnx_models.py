"""Tiny models as ONNX: exported from the folders that tests/tiny_models.py writes, in the forms that exporters give."""

import io
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
import transformers

IDS_BT = torch.tensor([[5, 9, 30, 7, 3], [8, 3, 3, 20, 4]])
INPUTS = {
    "input_ids": IDS_BT,
    "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]]),
    "token_type_ids": torch.zeros_like(IDS_BT),
    "position_ids": torch.arange(5).expand(2, 5),
}


class _Caller(torch.nn.Module):
    """A model that is called by position, as an exporter does."""

    def __init__(self, model: Any, names: Sequence[str], output: str) -> None:
        super().__init__()
        self.model, self.names, self.output = model, names, output

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        given: dict[str, Any] = dict(zip(self.names, values, strict=True))
        earlier = [given.pop(name) for name in self.names if name.startswith("past")]
        if earlier:
            cache = transformers.DynamicCache()
            for layer in range(len(earlier) // 2):
                cache.update(*earlier[2 * layer : 2 * layer + 2], layer)
            given["past_key_values"] = cache
        elif self.model.can_generate():
            given["use_cache"] = False
        found: torch.Tensor = getattr(self.model(**given), self.output)
        return found


def exported(
    folder: Path,
    target: Path,
    *,
    file: str = "model.onnx",
    output: str = "logits",
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
    past: bool = False,
    external: bool = False,
    fixed: bool = False,
) -> Path:
    """Writes `target`, a folder with the ONNX of a model in `folder` under the name `file`, its config and tokenizer.

    `inputs` are what the graph reads; with `past`, also earlier keys and values. `external` puts the weights into a
    file beside it, and with `fixed` it reads two rows of five tokens and nothing else.
    """
    shutil.copytree(folder, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(folder, attn_implementation="eager").eval()
    values = {name: INPUTS[name] for name in inputs}
    axes: dict[str, Any] = {name: {0: "batch", 1: "sequence"} for name in (*inputs, output)}
    if config.architectures[0].endswith("SequenceClassification"):
        axes[output] = {0: "batch"}
    for layer in range(config.num_hidden_layers if past else 0):
        for part in ("key", "value"):
            name, width = f"past_key_values.{layer}.{part}", config.hidden_size // config.num_attention_heads
            values[name], axes[name] = torch.zeros(2, config.num_key_value_heads, 0, width), {0: "batch", 2: "past"}
    stream = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Caller(model, tuple(values), output),
            tuple(values.values()),
            stream,
            input_names=list(values),
            output_names=[output],
            dynamic_axes=None if fixed else axes,
            dynamo=False,
        )
    (target / file).parent.mkdir(exist_ok=True)
    save(onnx.load_from_string(stream.getvalue()), target / file, external=external)
    return target


def save(graph: onnx.ModelProto, file: Path, *, external: bool = False) -> None:
    """Writes a graph, with its weights in a file beside it if they are to be `external`."""
    beside = {"save_as_external_data": external, "location": f"{file.name}_data", "size_threshold": 0}
    onnx.save_model(graph, file, **(beside if external else {}))
