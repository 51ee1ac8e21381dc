"""The weights of a model as matrices of outputs × inputs, each with what it reads and writes (`families.toml`).

Storage differs: embeddings and GPT-2's matrices lie the other way round, and GPT-NeoX keeps queries, keys and values
of a head together. Here all lie one way, with the parts of a matrix one after another, and go back as they came.

Shapes: O outputs and I inputs of a matrix.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from entrenar_core.architectures import Family
from entrenar_core.architectures.flows import Axis, Flow, in_template
from entrenar_core.errors import ModelError
from entrenar_core.models.widths import Widths


@dataclass(frozen=True, slots=True)
class Module:
    """The weights of one module, on the CPU in 32 bits, a matrix as (O, I).

    `name` is the one in the body or, of a head, in the model; `row` that in the table; `layer` the layer it is in.
    `is_output` is the matrix that makes logits of a vocabulary, which may be the embeddings.
    """

    name: str
    row: str
    layer: int | None
    flow: Flow
    in_head: bool
    is_turned: bool
    is_output: bool
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def weight(self) -> Tensor:
        """The matrix (O, I), or the gains of a norm."""
        return self.tensors["weight"]

    @property
    def is_lookup(self) -> bool:
        """Whether it is an embedding: it writes the stream and reads no width."""
        return not self.flow.is_norm and self.flow.writes.parts == ("hidden",) and not self.flow.reads.parts

    def stored(self, tensor: Tensor, heads: int) -> Tensor:
        """One of its tensors as the model holds it, of a model with so many heads."""
        if self.flow.writes.by_head:
            tensor = _swapped(tensor, len(self.flow.writes.parts), heads)
        return (tensor.T if self.is_turned and tensor.ndim > 1 else tensor).contiguous()


def matrices_of(teacher: PreTrainedModel, family: Family, widths: Widths, layers: Sequence[int]) -> tuple[Module, ...]:
    """The weights of a model outside its layers and in some of them.

    Raises:
        ModelError: the model has a tensor that the family's table does not know.
    """
    assert family.flows, "checked by check_widths"
    found: dict[tuple[bool, str], Module] = {}
    output = teacher.get_output_embeddings()
    for owner, full, tensor, in_head in _tensors(teacher):
        name, _, leaf = full.rpartition(".")
        row, layer = (name, None) if in_head else in_template(name, family.layers)
        if layer is not None and layer not in layers:
            continue
        flow = family.flows.modules.get(row)
        if flow is None:
            raise ModelError(
                f"the teacher has a tensor {full}, and which widths of {family.name} run through it is not known here",
                "copy whole layers: leave the widths out of `student.init_from`",
            )
        part = owner.get_submodule(name)
        is_turned = not flow.is_norm and not isinstance(part, nn.Linear)
        module = found.setdefault((in_head, name), Module(name, row, layer, flow, in_head, is_turned, part is output))
        module.tensors[leaf] = _as_matrix(tensor.detach().to("cpu", torch.float32), module, widths.num_heads)
    return tuple(found.values())


def reading(modules: Sequence[Module], axis: Axis, layer: int | None = None) -> list[Module]:
    """The matrices that read a width, in one layer if it is given."""
    return [m for m in modules if axis in m.flow.reads.parts and layer in (None, m.layer)]


def writing(modules: Sequence[Module], axis: Axis, layer: int | None = None) -> list[Module]:
    """The matrices that write a width, in one layer if it is given."""
    return [m for m in modules if axis in m.flow.writes.parts and not m.flow.is_norm and layer in (None, m.layer)]


def parts_of(module: Module, axis: Axis, sizes: dict[Axis, int]) -> list[Tensor]:
    """The rows of a matrix that write a width; several parts where it writes it several times."""
    parts = module.flow.writes.parts
    pieces = torch.split(module.weight, [sizes[part] for part in parts])
    return [piece for part, piece in zip(parts, pieces, strict=True) if part == axis]


def sizes_of(widths: Widths, head_dim: int) -> dict[Axis, int]:
    """How many numbers each width has."""
    return {
        "hidden": widths.hidden_size,
        "pooled": widths.hidden_size,
        "predicted": widths.hidden_size,
        "queries": widths.num_heads * head_dim,
        "keys": widths.num_kv_heads * head_dim,
        "values": widths.num_kv_heads * head_dim,
        "neurons": widths.intermediate_size,
    }


def head_dim_of(modules: Sequence[Module], widths: Widths) -> int:
    """How many numbers a head has."""
    return reading(modules, "queries")[0].weight.shape[1] // widths.num_heads


def _tensors(teacher: PreTrainedModel) -> Iterator[tuple[nn.Module, str, Tensor, bool]]:
    body, prefix = teacher.base_model, f"{teacher.base_model_prefix}."
    yield from ((body, name, tensor, False) for name, tensor in body.state_dict().items())
    if body is not teacher:
        whole = teacher.state_dict()
        yield from ((teacher, name, tensor, True) for name, tensor in whole.items() if not name.startswith(prefix))


def _as_matrix(tensor: Tensor, module: Module, heads: int) -> Tensor:
    tensor = tensor.T if module.is_turned and tensor.ndim > 1 else tensor
    return _swapped(tensor, heads, len(module.flow.writes.parts)) if module.flow.writes.by_head else tensor


def _swapped(tensor: Tensor, outer: int, inner: int) -> Tensor:
    """Rows in blocks of outer × inner as inner × outer."""
    return tensor.reshape(outer, inner, -1, *tensor.shape[1:]).transpose(0, 1).flatten(0, 2)
