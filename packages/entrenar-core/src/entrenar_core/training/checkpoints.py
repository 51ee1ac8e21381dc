"""Checkpoints: everything that decides the bits of the rest of a run, in folders that are whole or not there.

A checkpoint holds the weights, the optimiser's moments, the random state of every rank, and `state.json`. The data
position and the learning rate are functions of the step. Tensors are safetensors, the rest is JSON: no pickle.
"""

import json
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from entrenar_core.errors import TrainingError
from entrenar_core.models.adapted import is_adapted, trained_tensors
from entrenar_core.training.files import new_folder, remove_folder, write_json
from entrenar_core.training.run_folder import complete_checkpoints, step_name

_BESIDE = "beside.safetensors"
_SHARED = ("qmap1", "qmap2")
"""Of bitsandbytes' optimisers: the values that bytes stand for, one tensor for all parameters."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come, besides its tensors. Scores are the ones that selection compares."""

    step: int = 0
    best_step: int | None = None
    best_score: float | None = None
    stale_evaluations: int = 0
    stopped_early: bool = False
    train_s: float = 0.0
    examples: int = 0
    initial_loss: float | None = None
    final_loss: float | None = None


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What of a model must be saved: each parameter once, tied or not, and the buffers that belong to its state; of one
    with an adapter, what trains.
    """
    if is_adapted(model):
        return {name: tensor.detach().cpu().contiguous() for name, tensor in trained_tensors(model).items()}
    state = model.state_dict(keep_vars=True)
    once: dict[int, str] = {}
    for name, tensor in state.items():
        once.setdefault(id(tensor), name)
    return {name: state[name].detach().cpu().contiguous() for name in once.values()}


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies saved tensors into a model of the same build.

    Raises:
        KeyError, ValueError: it is of another build.
    """
    state = dict(trained_tensors(model)) if is_adapted(model) else model.state_dict(keep_vars=True)
    if absent := saved_tensors(model).keys() - tensors.keys():
        raise KeyError(f"{min(absent)} is missing")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if state[name].shape != tensor.shape:  # `copy_` would broadcast
                raise ValueError(f"{name} is {tuple(tensor.shape)} and not {tuple(state[name].shape)}")
            state[name].copy_(tensor)


def _weights(model: nn.Module) -> str:
    """The file of what is saved of a model; that of an adapter is not one that another program takes for a model."""
    return "trained.safetensors" if is_adapted(model) else "model.safetensors"


def save_best(folder: Path, model: nn.Module, step: int, *, keep: int | None) -> None:
    """Writes `folder/best-…`, and then deletes others but that of step `keep`, which the newest checkpoint means.

    Raises:
        OutputError: it cannot be written.
    """
    with new_folder(best_folder(folder, step)) as aside:
        save_file(saved_tensors(model), aside / _weights(model))
    forget_best(folder, {step, keep})


def best_folder(folder: Path, step: int) -> Path:
    """Where the weights of a step lie, if they were the best."""
    return folder / f"best-{step:08d}"


def forget_best(folder: Path, keep: Collection[int | None]) -> None:
    """Deletes the best weights of all steps but those."""
    kept = {best_folder(folder, step) for step in keep if step is not None}
    for old in folder.glob("best-*"):
        if old not in kept:
            remove_folder(old)


def load_best(folder: Path, model: nn.Module, step: int) -> None:
    """Puts the best weights of a run, which were those of `step`, into its model.

    Raises:
        TrainingError: they are damaged or gone.
    """
    file = best_folder(folder, step) / _weights(model)
    try:
        load_tensors(model, load_file(file))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise TrainingError(
            f"the best weights in {file} are damaged: {error}",
            "start again with --force, or set `training.select: last`",
        ) from error


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    beside: nn.Module | None = None,
    keep: int,
    random_states: list[dict[str, Any]],
    scaler: dict[str, Any] | None,
    describe: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Writes `folder/step-…` and then deletes the oldest beyond `keep`.

    `beside` is what trains with the model and is no part of it, such as projections. `describe` adds what makes the
    folder a model that can be loaded.

    Raises:
        OutputError: it cannot be written; the checkpoints before it are left as they were.
    """
    path = folder / step_name(progress.step)
    with new_folder(path) as aside:
        save_file(saved_tensors(model), aside / _weights(model), metadata={"format": "pt"})
        describe(aside)
        if beside_tensors := {} if beside is None else saved_tensors(beside):
            save_file(beside_tensors, aside / _BESIDE)
        moments = _optimizer_tensors(_named(model, beside), optimizer)
        save_file(moments, aside / "optimizer.safetensors")
        for rank, state in enumerate(random_states):
            save_file(state["tensors"], aside / f"random-{rank}.safetensors")
        others = {
            "optimizer_tensors": len(moments),
            "random": [state["plain"] for state in random_states],
            "scaler": scaler,
        }
        write_json(aside / "state.json", {"progress": asdict(progress), **others})
    for old in complete_checkpoints(folder)[:-keep]:
        remove_folder(old)
    return path


def load_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    beside: nn.Module | None = None,
    rank: int = 0,
    world_size: int = 1,
    scaler: Any = None,
) -> Progress:
    """Puts model, optimiser, scaler and this rank's random state back to where they were.

    Raises:
        TrainingError: the checkpoint is damaged, or was made by another number of processes.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        progress = _progress(path, state["progress"])
        _require_as_many(path, len(state["random"]), world_size)
        load_tensors(model, load_file(path / _weights(model)))
        if beside is not None and saved_tensors(beside):
            load_tensors(beside, load_file(path / _BESIDE))
        moments = load_file(path / "optimizer.safetensors")
        if len(moments) != state["optimizer_tensors"]:
            raise ValueError(f"the optimiser has {len(moments)} tensors instead of {state['optimizer_tensors']}")
        _load_optimizer(_named(model, beside), optimizer, moments)
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])
        set_random_state({"tensors": load_file(path / f"random-{rank}.safetensors"), "plain": state["random"][rank]})
        return progress
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise TrainingError(
            f"checkpoint {path} is damaged: {error}", "delete that folder and resume from the one before it"
        ) from error


def _progress(path: Path, values: Mapping[str, Any]) -> Progress:
    progress = Progress(**values)
    if type(progress.step) is not int or path.name != step_name(progress.step):
        raise ValueError(f"it is of step {progress.step!r}")
    return progress


def _require_as_many(path: Path, made_by: int, world_size: int) -> None:
    if made_by == 0:
        raise ValueError("it holds no random state")
    if made_by != world_size:
        were, are = (f"{number} process{'' if number == 1 else 'es'}" for number in (made_by, world_size))
        raise TrainingError(
            f"{path} was made by {were}, and this run has {are}", f"resume with {were}, or start again with --force"
        )


def _named(model: nn.Module, beside: nn.Module | None) -> dict[str, nn.Parameter]:
    others = {} if beside is None else {f"beside.{name}": parameter for name, parameter in beside.named_parameters()}
    return dict(model.named_parameters()) | others


def _optimizer_tensors(parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What it keeps of each parameter; a number that is no tensor, such as bitsandbytes' count of steps, as one of
    integers, and what several parameters share, such as the values that bytes stand for, once for each.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    return {
        f"{names[id(parameter)]}:{key}": value.detach().cpu().clone() if key in _SHARED else _cpu(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def _cpu(value: Tensor | int) -> Tensor:
    return value.detach().cpu().contiguous() if isinstance(value, Tensor) else torch.tensor(value)


def _load_optimizer(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    for name, value in tensors.items():
        parameter, key = name.rsplit(":", 1)
        owner = parameters[parameter]
        count = int(value) if value.dtype == torch.int64 else value
        optimizer.state[owner][key] = count if key == "step" else value.to(owner.device)


def random_state() -> dict[str, Any]:
    """The state of every generator of this process: tensors for torch, plain values for Python and numpy."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    plain = {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, cached],
    }
    return {"tensors": tensors, "plain": plain}


def set_random_state(state: Mapping[str, Any]) -> None:
    """The reverse of `random_state`."""
    tensors = dict(state["tensors"])
    torch.set_rng_state(tensors.pop("cpu"))
    if tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([tensors[f"cuda{index}"] for index in range(len(tensors))])
    version, words, gauss = state["plain"]["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["plain"]["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
