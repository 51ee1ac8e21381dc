"""Where FSDP shards a student over processes, the loss made inside of its output layer has the same gradient."""

import socket
from pathlib import Path

import pytest
import torch.multiprocessing as processes

from sharded_step import WORLD, take_part
from tiny_models import tiny_llama


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_a_sharded_student_gets_the_gradient_of_a_whole_one(tied: bool, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "teacher", seed=1, initializer_range=0.2)
    tiny_llama(tmp_path / "student", seed=2, initializer_range=0.1, tie_word_embeddings=tied)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes.spawn(take_part, args=(tmp_path, port), nprocs=WORLD)
