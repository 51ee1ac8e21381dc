"""ggml's library: found without importing its package, never called with what would end the process, in threads."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.quantization import ggml as ggml_module
from entrenar_core.quantization.ggml import Ggml, ggml

VALUES = np.ones((2, 512), np.float32)
ROOM = np.zeros(4 * 144, np.uint8)
READ_ONLY = np.frombuffer(bytes(4 * 144), np.uint8)


@pytest.fixture(scope="module")
def library() -> Ggml:
    found = ggml()
    if found is None:
        pytest.skip("the package xllamacpp is not installed; `make setup` brings it")
    return found


@pytest.mark.real_models
@pytest.mark.parametrize(
    "given",
    [
        {"values": VALUES.astype(np.float64)},
        {"values": VALUES[:, ::2]},
        {"values": VALUES.astype(">f4")},
        {"values": np.ones((2, 500), np.float32)},
        {"dtype": DTYPES["Q8_K"]},
        {"dtype": DTYPES["F16"]},
        {"out": ROOM[:-1]},
        {"out": ROOM[::2]},
        {"out": READ_ONLY},
        {"out": np.empty(2 * 144, np.uint16)},
        {"importance": np.ones(511, np.float32)},
        {"importance": np.ones(512, np.float64)},
        {"importance": np.ones((1, 512), np.float32)},
        {"importance": np.ones(1024, np.float32)[::2]},
    ],
)
def test_what_does_not_fit_never_reaches_it(library: Ggml, given: dict[str, Any]) -> None:
    fitting: dict[str, Any] = {"values": VALUES, "dtype": DTYPES["Q4_K"], "out": ROOM}
    library.encode(**fitting)
    with pytest.raises(ValueError, match="ggml cannot be called with this"):
        library.encode(**fitting | given)


@pytest.mark.real_models
@pytest.mark.parametrize(
    "given",
    [
        {"raw": ROOM[:-1]},
        {"raw": ROOM[::2]},
        {"raw": np.empty(144, np.uint16)},
        {"dtype": DTYPES["Q8_K"]},
        {"out": np.empty(1023, np.float32)},
        {"out": np.empty(1024, np.float64)},
    ],
)
def test_nor_what_cannot_be_decoded(library: Ggml, given: dict[str, Any]) -> None:
    fitting: dict[str, Any] = {"raw": ROOM, "dtype": DTYPES["Q4_K"], "out": np.empty(1024, np.float32)}
    library.decode(**fitting)
    with pytest.raises(ValueError, match="ggml cannot be called with this"):
        library.decode(**fitting | given)


@pytest.mark.real_models
def test_other_threads_run_while_it_computes(library: Ggml) -> None:
    values = np.random.default_rng(0).standard_normal((1024, 2048), np.float32)
    out = np.empty(DTYPES["Q4_K"].size_bytes(values.shape) or 0, np.uint8)
    spans: list[float] = []

    def work() -> None:
        spans.append(time.perf_counter())
        library.encode(values, DTYPES["Q4_K"], out)
        spans.append(time.perf_counter())

    worker, ticks = threading.Thread(target=work), list[float]()
    worker.start()
    while worker.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    worker.join()
    start, end = spans
    assert any(start + 0.2 * (end - start) < tick < end - 0.2 * (end - start) for tick in ticks)


@pytest.mark.real_models
@pytest.mark.usefixtures("library")
def test_the_package_is_not_imported() -> None:
    program = (
        "import sys; from entrenar_core.quantization.ggml import ggml; assert ggml() is not None; "
        "assert not {'xllamacpp', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("content", [b"no library at all", None])
def test_a_library_that_cannot_be_used_is_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """What is no library, and one that has not these functions."""
    package = tmp_path / "broken_cpp"
    package.mkdir()
    library = package / "broken_cpp.abi3.so"
    if content is None:
        import _ctypes

        library.symlink_to(_ctypes.__file__)
    else:
        library.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ggml_module, "PACKAGE", package.name)
    ggml.cache_clear()
    try:
        assert ggml() is None
    finally:
        ggml.cache_clear()
