"""Settings of convenience that must not reach the student: worker processes, trackers, lines of metrics."""

from pathlib import Path

from tiny_runs import log, losses, run, weights, write_job, write_models


def test_workers_and_trackers_give_the_same_bits_and_tensorboard_gets_its_events(tmp_path: Path) -> None:
    models = write_models(tmp_path / "models")
    plain = write_job(tmp_path / "plain", models, training={"group_by_length": True})
    helped = write_job(
        tmp_path / "helped",
        models,
        training={"group_by_length": True, "dataloader_workers": 2, "trackers": ["tensorboard"], "log_every": 5},
    )
    for job in (plain, helped):
        assert run(job) == 0, log(job)
    assert weights(helped) == weights(plain)
    assert losses(helped) == [losses(plain)[index] for index in (0, 4, 9, -1)]  # the first, every fifth, the last
    events = list((tmp_path / "helped" / "out" / "trackers").rglob("events.out.tfevents.*"))
    assert any(b"learning_rate" in file.read_bytes() for file in events)
