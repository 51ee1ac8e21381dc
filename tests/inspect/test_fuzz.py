"""Sound files of every format with bytes changed at random: each is read or refused, in time and in little memory.

`nox -s fuzz` tries 10,000 of each, and every run of the tests some hundreds.
"""

import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given

from entrenar_core.errors import EntrenarError
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import StoredModel, open_model
from entrenar_inspect.layers import list_layers
from entrenar_inspect.summary import summarize
from entrenar_inspect.validating import validate
from fuzz_seeds import SEEDS
from mutations import EDITS, Edit, Mutator

LIMIT_S, LIMIT_BYTES = 2.0, 150_000_000
OTHERS = tuple(seed.content for seed in SEEDS.values())


def look(path: Path) -> None:
    """What `info`, `layers` and `validate` do, and what must hold of all that is read."""
    with open_model(parse_reference(str(path)), allow_pickle=True) as model:
        assert_sound(model)
        summarize(model)
        list_layers(model, depth=3)
    validate(str(path), strict=True, allow_pickle=True)


def assert_sound(model: StoredModel) -> None:
    for name, tensor in model.tensors.items():
        assert tensor.name == name
        assert min(tensor.shape, default=0) >= 0
        if tensor.inline:
            assert len(model.inline(tensor)) == tensor.size_bytes
        else:
            assert 0 <= tensor.offset <= tensor.end <= model.sources[tensor.file].size_bytes
        if tensor.dtype.block == 1 and tensor.dtype.block_bytes and not tensor.dtype.head_bytes:
            assert tensor.size_bytes == tensor.values * tensor.dtype.block_bytes


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name) for name in SEEDS}


@pytest.fixture(scope="module")
def most_bytes() -> int:
    return peak_bytes() + LIMIT_BYTES


@pytest.mark.parametrize("name", SEEDS)
def test_a_seed_is_sound(name: str, folders: dict[str, Path]) -> None:
    seed = SEEDS[name]
    look(seed.write(folders[name], seed.content))


@pytest.mark.parametrize("name", SEEDS)
@given(edits=EDITS)
def test_a_changed_file_is_read_or_refused(
    name: str, folders: dict[str, Path], most_bytes: int, edits: list[Edit]
) -> None:
    seed = SEEDS[name]
    content = Mutator(seed.is_text, seed.marks, OTHERS).mutated(seed.content, edits)
    path = seed.write(folders[name], content)
    begun = time.process_time()
    with suppress(EntrenarError):
        look(path)
    assert time.process_time() - begun < LIMIT_S
    assert peak_bytes() < most_bytes
