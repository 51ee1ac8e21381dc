"""Tiny models that a module's runs share, and a home of each test's own for what is kept between runs."""

from pathlib import Path

import pytest

from tiny_jobs import Models, build_models


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTRENAR_HOME", str(tmp_path / "home"))
