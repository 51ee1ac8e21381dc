"""llama.cpp in a process of its own: its words where it fails, and no process left, whatever happens."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from entrenar_core.errors import ModelError
from entrenar_core.verification import server as serving
from entrenar_core.verification.server import LlamaServer, last_words
from llama_files import llama_file
from tiny_models import tiny_llama

WAIT_S = 20.0
ASSERTION = """0.00.003.964 W srv          init: security: no API key is set
/src/ggml/src/ggml.c:1234: GGML_ASSERT(a->ne[0] == b->ne[0]) failed
"""
_PARENT = """
import sys, time
from pathlib import Path
from entrenar_core.verification.server import LlamaServer
with LlamaServer(Path(sys.argv[1]), context=64, threads=1) as server:
    print(server.pid, flush=True)
    time.sleep(600)
"""
_HELD = """
import os, sys, time
from entrenar_core.verification.serving import _end_with_parent
_end_with_parent()
print(os.getpid(), flush=True)
sum(range(10**12))  # holds the interpreter, as llama.cpp does while it loads
"""


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("xllamacpp") is None:
        pytest.skip("the package xllamacpp is not installed; `make setup` brings it")
    folder = tmp_path_factory.mktemp("served")
    return llama_file(tiny_llama(folder / "llama"), folder / "model.gguf")


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has, too."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def children() -> set[int]:
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes in /proc")


@pytest.mark.real_models
@needs_proc
def test_it_serves_until_the_block_ends_and_asks_no_proxy(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    before = children()
    with LlamaServer(gguf, context=64, threads=1) as server:
        pid = server.pid
        assert not gone(pid)
        assert server.post("/detokenize", {"tokens": [0]})["content"] is not None
    assert gone(pid)
    assert children() == before


@pytest.mark.real_models
@needs_proc
@pytest.mark.parametrize(
    ("cut", "words"), [(None, "invalid magic characters"), (0.5, "is not within the file bounds, model is corrupted")]
)
def test_a_file_that_llama_cpp_refuses_gives_its_words(
    gguf: Path, tmp_path: Path, cut: float | None, words: str
) -> None:
    content = gguf.read_bytes()
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"garbage" if cut is None else content[: int(len(content) * cut)])
    before = children()
    with pytest.raises(ModelError, match=r"llama.cpp does not load bad.gguf: ") as caught, LlamaServer(bad, context=64):
        pass
    assert words in caught.value.message
    assert len(caught.value.message) < 1000
    assert children() == before


@pytest.mark.real_models
@needs_proc
def test_when_it_dies_amid_work_the_error_says_so(gguf: Path) -> None:
    with LlamaServer(gguf, context=64, threads=1) as server:
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ModelError, match=r"llama.cpp ended while it ran model.gguf: .+"):
            server.post("/tokenize", {"content": "a"})


@pytest.mark.real_models
def test_what_it_will_not_answer_is_told_in_its_words(gguf: Path) -> None:
    with (
        LlamaServer(gguf, context=64, threads=1) as server,
        pytest.raises(ModelError, match=r"llama.cpp does not run model.gguf: .*prompt"),
    ):
        server.post("/completion", {"n_predict": 1})


@pytest.mark.real_models
@needs_proc
def test_it_dies_with_a_parent_that_is_killed(gguf: Path) -> None:
    command = [sys.executable, "-c", _PARENT, str(gguf)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    assert until(lambda: gone(pid))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends once llama.cpp has loaded the file")
def test_it_dies_with_its_parent_even_while_no_python_runs_in_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HELD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert int(child.stdout.readline()) == child.pid
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(WAIT_S) == -signal.SIGKILL


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(serving, "PACKAGE", "xllamacpp_that_is_not_there")
    with pytest.raises(ModelError) as caught, LlamaServer(tmp_path / "model.gguf", context=64):
        pass
    assert "pip install 'entrenar[xllamacpp]'" in str(caught.value.hint)


def test_last_words_are_causes_and_not_what_follows_from_them() -> None:
    log = """0.00.005.809 I srv          init: loading model
0.00.059.588 E llama_model_load: error loading model: missing tensor 'output_norm.weight'
0.00.059.631 E llama_model_load_from_file_impl: failed to load model
0.00.059.638 E cmn  common_init_: failed to load model '/tmp/cut.gguf'
0.00.060.227 E srv          init: exiting due to model loading error
"""
    assert last_words(log) == "llama_model_load: error loading model: missing tensor 'output_norm.weight'"


def test_last_words_of_an_abort_are_its_assertion() -> None:
    assert last_words(ASSERTION).endswith("GGML_ASSERT(a->ne[0] == b->ne[0]) failed")


def test_last_words_are_bounded_and_printable() -> None:
    log = "\n".join(f"0.00.0{n} E \x1b[31mwrong {n} {'x' * 5000}" for n in range(50))
    words = last_words(log)
    assert len(words) < 700
    assert words.isprintable()
    assert "wrong 49" in words


def test_last_words_of_a_log_without_errors_are_its_last_lines() -> None:
    assert last_words("one\ntwo\n\nthree\nfour\n") == "two; three; four"
    assert last_words("") == ""
