"""An adapter as peft loads it: adapter_config.json and adapter_model.safetensors in a folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar_core.adapters.peft_names import PREFIX
from entrenar_core.conversion.files import ADAPTER, replacing, write_file
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.writing import Outgoing

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Matrices:
    """A, (r, in), and B, (out, r), of a linear module; of an embedding A is (r, rows) and B (width, r)."""

    module: str
    down: "Tensor"
    up: "Tensor"
    embedding: bool = False

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def parameters(self) -> int:
        return self.down.numel() + self.up.numel()


def write_adapter(
    output: Path,
    matrices: Sequence[Matrices],
    whole: Mapping[str, "Tensor"],
    *,
    base: str | None,
    task: str | None = None,
    transposed: bool = False,
    modules_to_save: Sequence[str] = (),
    dtype: str = "F32",
    force: bool = False,
) -> tuple[tuple[str, ...], int]:
    """Writes the folder; returns its files and their bytes. Every module has an alpha of its rank, and so the scale 1.

    Args:
        whole: tensors that stand in place of the base's, by the names that they have there.
        task: peft's name, such as CAUSAL_LM.
        transposed: whether the base's matrices are (in, out), as GPT-2's.

    Raises:
        OutputError: the output is there already, or cannot be written.
    """
    kind = DTYPES[dtype]
    config = _config(matrices, base=base, task=task, transposed=transposed, modules_to_save=modules_to_save)
    tensors = [_outgoing(name, tensor, kind) for name, tensor in _named(matrices, whole)]
    name = f"{ADAPTER}.safetensors"
    with replacing(output, folder=True, force=force) as folder:
        write_file(folder / name, WeightFormat.SAFETENSORS, tensors, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        size_bytes = sum((folder / one).stat().st_size for one in (name, CONFIG))
    return (CONFIG, name), size_bytes


def _config(
    matrices: Sequence[Matrices],
    *,
    base: str | None,
    task: str | None,
    transposed: bool,
    modules_to_save: Sequence[str],
) -> dict[str, Any]:
    ranks = [one.rank for one in matrices]
    rank = max(set(ranks), key=lambda one: (ranks.count(one), one))
    others = {one.module: one.rank for one in matrices if one.rank != rank}
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(one.module for one in matrices),
        "modules_to_save": sorted(modules_to_save) or None,
        "fan_in_fan_out": transposed,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }


def _named(matrices: Sequence[Matrices], whole: Mapping[str, "Tensor"]) -> Iterator[tuple[str, "Tensor"]]:
    for one in matrices:
        kinds = ("lora_embedding_A", "lora_embedding_B") if one.embedding else ("lora_A.weight", "lora_B.weight")
        yield f"{PREFIX}{one.module}.{kinds[0]}", one.down
        yield f"{PREFIX}{one.module}.{kinds[1]}", one.up
    for name, tensor in whole.items():
        yield PREFIX + name, tensor


def _outgoing(name: str, tensor: "Tensor", dtype: Dtype) -> Outgoing:
    def chunks() -> Iterator[memoryview]:
        import torch

        from entrenar_core.adapters.target_changes import TORCH_DTYPES

        flat = tensor.detach().to(TORCH_DTYPES[dtype.name]).contiguous().view(-1)
        yield flat.view(torch.uint8).numpy().data

    return Outgoing(name, dtype, tuple(tensor.shape), chunks)
