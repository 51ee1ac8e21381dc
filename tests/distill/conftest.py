"""The program in this process, and the models of its jobs."""

from collections.abc import Callable, Sequence

import pytest

from tiny_jobs import Models, build_models


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str] | None], int]:
    from entrenar_distill.cli import main

    for name in ("RANK", "NO_COLOR", "HF_TOKEN", "ENTRENAR_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return main


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(tmp_path_factory.mktemp("models"))
