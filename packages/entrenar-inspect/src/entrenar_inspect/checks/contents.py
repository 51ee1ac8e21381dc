"""What a file is: the weights of a model, or the state of the training that made it."""

from pathlib import PurePosixPath

from entrenar_core.stored_model import StoredModel
from entrenar_inspect.checks.results import warned
from entrenar_inspect.reports.validation import Check
from entrenar_inspect.summary import Facts

NAME = "contents"
# How what trains a model calls the files that it goes on from.
_STATES = ("optimizer", "optim_", "scheduler", "scaler", "rng_state", "training_args")
# What torch.optim.Optimizer.state_dict() gives.
_STATE, _GROUPS = "state.", "param_groups."


def is_model(model: StoredModel, facts: Facts) -> Check | None:
    """Warns of the state of an optimizer and its like. None where tensors are those of a family, or nothing says more.

    Source: torch.optim, whose states are `state` and `param_groups`; transformers and accelerate, for names of files.
    """
    if facts.detection is not None:
        return None
    if _is_optimizer(model):
        return warned(NAME, "this is the state of an optimizer, and no model")
    states = [file.name for file in model.files if PurePosixPath(file.name).name.startswith(_STATES)]
    return warned(NAME, f"{states[0]} is called like the state of a training, which is no model") if states else None


def _is_optimizer(model: StoredModel) -> bool:
    grouped = any(key.startswith(_GROUPS) for key in model.metadata)
    return grouped and all(name.startswith(_STATE) for name in model.tensors)
