"""How large the gradient of each part of a student is, and of what trains beside it."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from entrenar_core.architectures import family_of
from entrenar_core.diagnosis.troubles import PROJECTIONS
from entrenar_core.training.exit_terms import ExitTerm
from entrenar_core.training.layer_terms import LayerTerm
from entrenar_core.training.vector_terms import VectorTerm

Groups = Mapping[str, tuple[nn.Parameter, ...]]


def parameter_groups(student: nn.Module, terms: Iterable[VectorTerm | LayerTerm | ExitTerm] = ()) -> Groups:
    """The parameters that train, by the part that they belong to, each in one: `embeddings`, `layer 0` and on, what is
    left of the body, the `head`, and the `projections of` each loss, which include learnt weights of heads.

    A head that shares the weights of the embeddings is part of these. A model whose layers are not known is one group,
    `student`.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    taken: set[nn.Parameter] = set()

    def add(name: str, parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            if parameter.requires_grad and parameter not in taken:
                taken.add(parameter)
                groups.setdefault(name, []).append(parameter)

    for name, module in _parts(student):
        add(name, module.parameters())
    for term in terms:
        own = list(term.parameters())
        groups |= {f"{PROJECTIONS}{term.label}": own} if own else {}
    return {name: tuple(parameters) for name, parameters in groups.items()}


def _parts(student: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """The narrower ones first: a parameter belongs to the first part that has it."""
    model = next((module for module in student.modules() if isinstance(module, PreTrainedModel)), None)
    family = family_of({"model_type": model.config.model_type}) if model is not None else None
    if model is None or family is None:
        return [("student", student)]
    body = model.base_model
    try:
        layers = body.get_submodule(family.layers)
    except AttributeError:
        return [("student", student)]
    named = [(f"layer {index}", layer) for index, layer in enumerate(layers.children())]
    embeddings = body.get_input_embeddings()
    inside = [("embeddings", module) for name, module in body.named_children() if "embed" in name]
    first = [("embeddings", embeddings)] if isinstance(embeddings, nn.Module) else []
    return [*first, *inside, *named, ("rest of the body", body), ("head", student)]


@torch.no_grad()
def gradient_norms(groups: Groups) -> dict[str, float]:
    """The Euclidean norm of the gradient of each group, in fp32 or better; 0 where there is none. Waits for the device
    once.
    """
    if not groups:
        return {}
    norms = [
        torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(_gradient(parameter)) for parameter in parameters])
        )
        for parameters in groups.values()
    ]
    return dict(zip(groups, torch.stack(norms).tolist(), strict=True))


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros(1, device=parameter.device) if parameter.grad is None else parameter.grad.float()
