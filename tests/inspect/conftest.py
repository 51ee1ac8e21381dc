"""The program in this process, and tiny models to look into."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tiny_models import tiny_bert, tiny_llama


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str] | None], int]:
    from entrenar_inspect.cli import main

    for name in ("RANK", "NO_COLOR", "HF_TOKEN", "ENTRENAR_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return main


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama in shards; not to be written to."""
    return tiny_llama(tmp_path_factory.mktemp("llama") / "model", max_shard_size="40KB")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert") / "model")
