"""The sample program, in this process and as a command line for others."""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str] | None], int]:
    for name in ("RANK", "NO_COLOR", "HF_TOKEN", "ENTRENAR_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.syspath_prepend(str(HERE))
    run: Callable[[Sequence[str] | None], int] = importlib.import_module("sample_program").main
    return run


@pytest.fixture
def command() -> list[str]:
    """What starts the sample program in another process."""
    start = f"import sys; sys.path.insert(0, {str(HERE)!r}); from sample_program import main; sys.exit(main())"
    return [sys.executable, "-c", start]
