"""Checkpoints and run folders: whole or not there, never fewer than one good one, and never another run's."""

import contextlib
import errno
import json
import os
import random
import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from entrenar_core.config.schema import OptimizerName, TrainingConfig
from entrenar_core.errors import OutputError, TrainingError, UsageError
from entrenar_core.training.checkpoints import (
    Progress,
    forget_best,
    load_best,
    load_checkpoint,
    load_tensors,
    random_state,
    save_best,
    save_checkpoint,
    saved_tensors,
    set_random_state,
)
from entrenar_core.training.files import new_folder, remove_folder, write_json, write_text, writing
from entrenar_core.training.optimizer import make_optimizer
from entrenar_core.training.run_folder import Metrics, RunFolder, check_usable, complete_checkpoints, read_metrics

MANIFEST: dict[str, Any] = {
    "config": {"training": {"learning_rate": 0.1, "seed": 1, "log_every": 10}, "output": {"keep": 2}},
    "fingerprints": {"teacher": "a" * 64},
}


def trained(seed: int = 0) -> tuple[nn.Linear, torch.optim.AdamW]:
    """A model whose optimiser has a state."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def save(folder: Path, step: int, keep: int = 2, seed: int = 0, processes: int = 1) -> Path:
    model, optimizer = trained(seed)
    progress = Progress(step=step, best_step=1, best_score=0.5, final_loss=1.25)
    return save_checkpoint(
        folder, model, optimizer, progress, keep=keep, random_states=[random_state()] * processes, scaler={"scale": 2.0}
    )


def test_a_checkpoint_brings_back_weights_moments_chance_and_progress(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    path = save(tmp_path, 7, seed=1)
    expected = (random.random(), float(np.random.rand()), torch.rand(3))
    other, its_optimizer = trained(2)
    progress = load_checkpoint(path, other, its_optimizer, rank=0)
    assert progress == Progress(step=7, best_step=1, best_score=0.5, final_loss=1.25)
    actual = (random.random(), float(np.random.rand()), torch.rand(3))
    assert actual[:2] == expected[:2]
    assert torch.equal(actual[2], expected[2])
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    for mine, its in zip(optimizer.state.values(), its_optimizer.state.values(), strict=True):
        assert mine.keys() == its.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(mine[key], its[key]) for key in mine)


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit", "sgd", "adafactor"])
def test_every_optimiser_goes_on_as_if_it_had_never_stopped(tmp_path: Path, name: OptimizerName) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64))
        return model, make_optimizer(model, TrainingConfig(optimizer=name, learning_rate=0.01))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        model(torch.randn(8, 64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = made()
    before = [one.detach().clone() for one in model.parameters()]
    for seed in (1, 2):
        step(model, optimizer, seed)
    path = save_checkpoint(
        tmp_path, model, optimizer, Progress(step=2), keep=1, random_states=[random_state()], scaler=None
    )
    other, its_optimizer = made()
    load_checkpoint(path, other, its_optimizer)
    for one, another in ((model, optimizer), (other, its_optimizer)):
        step(one, another, 3)
    pairs = zip(model.parameters(), other.parameters(), before, strict=True)
    assert all(torch.equal(one, another) and not torch.equal(one, first) for one, another, first in pairs)


def test_tied_weights_are_saved_once_and_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    assert list(saved_tensors(model)) == ["0.weight"]
    load_tensors(model, {"0.weight": torch.eye(2)})
    assert torch.equal(model[1].weight, torch.eye(2))
    assert model[1].weight is model[0].weight


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_the_newest_stay(tmp_path: Path, keep: int) -> None:
    for step in (2, 4, 6, 10):
        save(tmp_path, step, keep)
    assert [path.name for path in complete_checkpoints(tmp_path)] == [
        f"step-{step:08d}" for step in (2, 4, 6, 10)[-keep:]
    ]


def test_a_checkpoint_that_cannot_be_written_costs_none_of_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 2, keep=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("entrenar_core.training.checkpoints.save_file", full)
    with pytest.raises(OutputError, match="step-00000004 cannot be written: No space left"):
        save(tmp_path, 4, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "random-0.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "zeroed"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, name: str, damage: str) -> None:
    path = save(tmp_path, 3)
    whole = (path / name).read_bytes()
    if damage == "gone":
        (path / name).unlink()
    else:
        (path / name).write_bytes(whole[: len(whole) // 2] if damage == "cut" else bytes(len(whole)))
    with pytest.raises(TrainingError, match="step-00000003 is damaged") as error:
        load_checkpoint(path, *trained(), rank=0)
    assert "delete that folder" in str(error.value.hint)


def test_a_checkpoint_of_another_model_is_an_error_not_a_broadcast(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    model = nn.Linear(3, 5)
    with pytest.raises(TrainingError, match="step-00000003"):
        load_checkpoint(path, model, torch.optim.AdamW(model.parameters()), rank=0)


def test_weights_of_another_shape_or_of_fewer_names_are_not_loaded() -> None:
    model = nn.Linear(3, 5)
    before = saved_tensors(model)["weight"].clone()
    with pytest.raises(ValueError, match=r"weight is \(1, 3\) and not \(5, 3\)"):
        load_tensors(model, {"weight": torch.ones(1, 3), "bias": torch.ones(5)})
    with pytest.raises(KeyError, match="bias is missing"):
        load_tensors(model, {"weight": torch.ones(5, 3)})
    assert (model.weight == before).all()


@pytest.mark.parametrize("damage", ["cut", "gone", "another model's"])
def test_best_weights_that_are_damaged_are_named(tmp_path: Path, damage: str) -> None:
    model, file = nn.Linear(3, 5), tmp_path / "best-00000004" / "model.safetensors"
    file.parent.mkdir()
    if damage != "gone":
        save_file(saved_tensors(nn.Linear(3, 5) if damage == "cut" else nn.Linear(2, 5)), file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(
        TrainingError, match=r"best weights in .*best-00000004/model\.safetensors are damaged"
    ) as raised:
        load_best(tmp_path, model, 4)
    assert "training.select: last" in str(raised.value.hint)


@pytest.mark.parametrize(("processes", "rank"), [(1, 0), (3, 0), (3, 2)])
def test_another_number_of_processes_is_refused_on_every_rank(tmp_path: Path, processes: int, rank: int) -> None:
    path = save(tmp_path, 3, processes=2)
    load_checkpoint(path, *trained(), rank=1, world_size=2)
    with pytest.raises(TrainingError, match=f"made by 2 processes, and this run has {processes} process") as raised:
        load_checkpoint(path, *trained(), rank=rank, world_size=processes)
    assert "resume with 2 processes" in str(raised.value.hint)


def test_moments_that_are_not_all_there_are_damage(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    save_file({}, path / "optimizer.safetensors")
    with pytest.raises(TrainingError, match="step-00000003 is damaged: the optimiser has 0 tensors instead of 6"):
        load_checkpoint(path, *trained())


@pytest.mark.parametrize("step", ["3", 4, None, True])
def test_a_state_of_another_step_than_the_folder_says_is_damage(tmp_path: Path, step: object) -> None:
    path = save(tmp_path, 3)
    state = json.loads((path / "state.json").read_text())
    state["progress"]["step"] = step
    (path / "state.json").write_text(json.dumps(state))
    with pytest.raises(TrainingError, match="step-00000003 is damaged: it is of step"):
        load_checkpoint(path, *trained())


def test_the_best_weights_and_those_that_the_newest_checkpoint_means_stay(tmp_path: Path) -> None:
    model = nn.Linear(3, 5)
    for step, keep in ((1, None), (2, 1), (3, 1)):
        with torch.no_grad():
            model.bias.fill_(step)
        save_best(tmp_path, model, step, keep=keep)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00000001", "best-00000003"]
    load_best(tmp_path, model, 1)
    assert (model.bias == 1).all()
    forget_best(tmp_path, {3, None})
    assert [path.name for path in tmp_path.iterdir()] == ["best-00000003"]


def test_the_random_state_survives_json() -> None:
    state = random_state()
    expected = [random.gauss(0, 1), random.random()]
    set_random_state({"tensors": state["tensors"], "plain": json.loads(json.dumps(state["plain"]))})
    assert [random.gauss(0, 1), random.random()] == expected


def test_a_folder_without_its_state_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / ".step-00000008.partial").mkdir()
    save(tmp_path, 3)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-00000003"]
    assert complete_checkpoints(tmp_path / "nowhere") == []


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with contextlib.suppress(ZeroDivisionError), new_folder(path) as aside:
        (aside / "half").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        with new_folder(path) as aside:
            (aside / text).write_text(text)
            assert not (path / text).exists()
    assert [file.name for file in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


def test_files_of_a_folder_are_as_readable_as_the_others_here(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    with new_folder(tmp_path / "made") as aside:
        save_file({"x": torch.ones(1)}, aside / "private.safetensors")
        (aside / "private.safetensors").chmod(0o600)
    assert (tmp_path / "made" / "private.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "mine").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    remove_folder(tmp_path / "link")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "mine").exists()


@pytest.mark.parametrize(("number", "hint"), [(errno.ENOSPC, "free space"), (errno.ENOTDIR, "look at what is there")])
def test_the_hint_is_about_space_only_where_space_is_short(tmp_path: Path, number: int, hint: str) -> None:
    with pytest.raises(OutputError) as raised, writing(tmp_path):
        raise OSError(number, os.strerror(number), str(tmp_path / "file"))
    assert hint in str(raised.value.hint)
    assert str(tmp_path / "file") in raised.value.message


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "before")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", {"loss": float("nan")})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder cannot be written"):
        write_text(tmp_path / "folder", "text")
    assert (tmp_path / "file").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_metrics_line_that_was_cut_off_is_dropped_and_steps_to_be_run_again_are_too(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    metrics = Metrics(file, up_to_step=None)
    for step in (1, 2, 3):
        metrics.add(step=step, loss=0.5)
    with file.open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert [line["step"] for line in read_metrics(file)] == [1, 2, 3]
    Metrics(file, up_to_step=2).add(step=3, loss=0.25)
    assert [(line["step"], line["loss"]) for line in read_metrics(file)] == [(1, 0.5), (2, 0.5), (3, 0.25)]


@pytest.mark.parametrize("line", [b"5", b'{"a": 1}', b'{"step": "1"}', b"\xff\xfe", b"[]"])
def test_a_metrics_file_is_read_up_to_what_is_no_line_of_it(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "loss": 2.0}\n' + line + b'\n{"step": 2}\n')
    assert read_metrics(file) == [{"step": 1, "loss": 2.0}]


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    first.open(MANIFEST, resume=False, force=False)
    for resume, force in ((True, False), (False, True), (False, False)):
        with pytest.raises(UsageError, match="in use by another run"):
            RunFolder(tmp_path).open(MANIFEST, resume=resume, force=force)
    first.finish("interrupted")
    second = RunFolder(tmp_path)
    second.open(MANIFEST, resume=True, force=False)
    second.close()


def changed(section: str, key: str, value: Any) -> Mapping[str, Any]:
    config: dict[str, Any] = MANIFEST["config"]
    return {**MANIFEST, "config": {**config, section: {**config[section], key: value}}}


def test_a_run_of_other_settings_is_not_resumed_and_the_setting_is_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open(MANIFEST, resume=False, force=False)
    folder.finish("interrupted")
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UsageError, match=r"`training.learning_rate` \(0.1 → 0.2\)"):
        RunFolder(tmp_path).open(changed("training", "learning_rate", 0.2), resume=True, force=False)
    with pytest.raises(UsageError, match="`teacher`"):
        RunFolder(tmp_path).open({**MANIFEST, "fingerprints": {"teacher": "b"}}, resume=True, force=False)
    assert (tmp_path / "run.json").read_bytes() == before
    for section, key, value in (("training", "log_every", 1), ("output", "keep", 9)):
        harmless = RunFolder(tmp_path)
        harmless.open(changed(section, key, value), resume=True, force=False)
        harmless.close()


def test_what_a_deletion_left_that_was_killed_is_gone_after_a_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open(MANIFEST, resume=False, force=False)
    save(tmp_path / "checkpoints", 3)
    folder.finish("interrupted")
    (tmp_path / "checkpoints" / ".step-00000002.deleted" / "half").mkdir(parents=True)
    again = RunFolder(tmp_path)
    again.open(MANIFEST, resume=True, force=False)
    again.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]


def test_force_replaces_a_run_and_touches_nothing_else(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open(MANIFEST, resume=False, force=False)
    save(tmp_path / "checkpoints", 3)
    folder.finish("complete", files=["chat_template.jinja", "../outside", "run.json"])
    for name in ("notes.txt", "chat_template.jinja", "../outside"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="holds a complete run") as error:
        check_usable(tmp_path, resume=False, force=False)
    assert "--resume" in str(error.value.hint)
    assert "--force" in str(error.value.hint)
    again = RunFolder(tmp_path)
    again.open(MANIFEST, resume=False, force=True)
    assert complete_checkpoints(tmp_path / "checkpoints"), "it may yet turn out that this run cannot be"
    again.begin()
    again.close()
    assert complete_checkpoints(tmp_path / "checkpoints") == []
    assert (tmp_path / "notes.txt").read_text() == (tmp_path / "../outside").read_text() == "mine"
    assert not (tmp_path / "chat_template.jinja").exists(), "it would be taken for the new student's"


def test_a_run_that_was_killed_while_it_replaced_another_can_be_started_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open(MANIFEST, resume=False, force=False)
    folder.finish("complete", files=["model.safetensors"])
    (tmp_path / "model.safetensors").write_text("old")
    (tmp_path / "checkpoints" / "step-00000001" / "state.json").mkdir(parents=True)
    manifest = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**manifest, "status": "discarding"}))
    again = RunFolder(tmp_path)
    again.open(changed("training", "seed", 2), resume=True, force=False)
    again.begin()
    again.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "run.json"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for force in (False, True):
        with pytest.raises(UsageError, match=r"thesis\.tex"):
            check_usable(tmp_path, resume=False, force=force)
    with pytest.raises(OutputError, match="is not a folder"):
        check_usable(tmp_path / "thesis.tex", resume=False, force=True)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(OutputError, match="cannot be read"):
        check_usable(tmp_path, resume=True, force=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_is_remembered_and_a_second_one_stops_at_once(number: signal.Signals) -> None:
    from entrenar_core.training.signals import StopRequest

    before = signal.getsignal(signal.SIGINT)
    told: list[str] = []
    with StopRequest(lambda: told.append("stopping")) as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
        assert told == ["stopping"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_folder_that_is_not_writable_is_refused() -> None:
    """By a process that is not root, who may write anywhere."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                check_usable(Path(folder) / "out", resume=False, force=False)
            except OutputError as error:
                status = 0 if "is not writable" in error.message else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        Path(folder).chmod(0o755)
