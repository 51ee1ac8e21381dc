"""The interpreter of pickles against Python's own on plain values, and against pickles that mean harm."""

import os
import pickle
import pickletools
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from entrenar_core.errors import ModelError
from entrenar_core.formats.pickles import MAX_CALLS, Constructor, Unacceptable, interpret
from entrenar_core.formats.pytorch_values import NAMES
from torch_files import START, called, dict_of, integer, named, pickled, text, tuple_of


def fail(what: str) -> ModelError:
    return ModelError(what)


def find(name: str) -> object:
    if name not in NAMES:
        raise ModelError(f"refused: {name}")
    return NAMES[name]


def outside(told: object) -> object:
    if told != ("storage",):
        raise Unacceptable("no storage")
    return "from outside"


def interpreted(data: bytes) -> Any:
    return interpret(data, find, outside, fail)


KEYS = st.text() | st.integers(-(2**63), 2**64 - 1) | st.booleans()
LEAVES = KEYS | st.none() | st.binary() | st.floats(allow_nan=False) | st.integers(-(2**2000), 2**2000)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.lists(inner, min_size=1, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner)
    ),
)  # fmt: skip


@given(value=VALUES, protocol=st.integers(2, 5), smaller=st.booleans())
@example(value={str(number): number for number in range(3000)}, protocol=2, smaller=False)
@example(value=["naïve" * 100, b"\xff" * 300, -(2**31), 2**31, 65_535, 0.1], protocol=4, smaller=True)
def test_plain_values_come_out_as_python_has_them(value: object, protocol: int, smaller: bool) -> None:
    data = pickle.dumps(value, protocol)
    found = interpreted(pickletools.optimize(data) if smaller else data)
    assert found == pickle.loads(data)
    assert repr(found) == repr(value), "1, 1.0 and True are equal, and not the same"


def test_sets_are_lists_or_nothing() -> None:
    assert sorted(interpreted(pickle.dumps({3, 1, 2}, 4))) == [1, 2, 3]
    assert interpreted(pickle.dumps(frozenset({7}), 4)) == (7,)
    assert not isinstance(interpreted(pickle.dumps({7}, 2)), list | dict | tuple)


@pytest.mark.parametrize("protocol", [2, 5])
def test_values_that_hold_themselves_do_so(protocol: int) -> None:
    ring: list[object] = [1]
    ring.append({"ring": ring})
    found = interpreted(pickle.dumps(ring, protocol))
    assert found[1]["ring"] is found


def test_what_lies_outside_is_asked_for() -> None:
    assert interpreted(START + tuple_of(text("storage")) + pickle.BINPERSID + pickle.STOP) == "from outside"
    with pytest.raises(ModelError, match="torch does not: no storage"):
        interpreted(START + tuple_of(text("module")) + pickle.BINPERSID + pickle.STOP)


class Spawns:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_that_a_pickle_names_is_run(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    data = pickle.dumps({"a": Spawns(canary)}, protocol)
    with pytest.raises(ModelError, match=f"refused: {os.name}.mkdir"):
        interpreted(data)
    assert not canary.exists()
    pickle.loads(data)
    assert canary.exists(), "the pickle does nothing, and the test proves nothing"


@pytest.mark.parametrize(
    ("module", "name", "refused"),
    [
        ("posix", "system", "posix.system"),
        ("__builtin__", "eval", "builtins.eval"),
        ("builtins", "getattr", "builtins.getattr"),
        ("torch.storage", "_load_from_bytes", "torch.storage._load_from_bytes"),
        ("torch._utils", "_rebuild_qtensor", "torch._utils._rebuild_qtensor"),
        ("collections", "OrderedDict.fromkeys", "collections.OrderedDict.fromkeys"),
        ("entrenar_core.formats.pickles", "interpret", "entrenar_core.formats.pickles.interpret"),
    ],
)
def test_other_names_are_refused(module: str, name: str, refused: str) -> None:
    for data in (named(module, name), text(module) + text(name) + pickle.STACK_GLOBAL):
        with pytest.raises(ModelError, match=f"^refused: {refused}$"):
            interpreted(START + data + pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.STOP)


ORDERED = named("collections", "OrderedDict")
UNSOUND: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends at byte 0"),
    "no protocol": (b"}.", "none of the protocols"),
    "protocol 1": (b"\x80\x01}.", "none of the protocols"),
    "protocol 6": (b"\x80\x06}.", "none of the protocols"),
    "no value": (START + b".", "its one value"),
    "two values": (START + b"NN.", "its one value"),
    "a mark that is left": (START + b"N(.", "its one value"),
    "bytes after the end": (START + b"N.N", "its one value"),
    "a protocol in the midst": (START + b"\x80\x02N.", "instruction 0x80"),
    "a string longer than it": (START + b"X\xff\xff\xff\xff", "before it is complete"),
    "a string longer than memory": (START + b"\x8d" + b"\xff" * 8, "before it is complete"),
    "a string that is not UTF-8": (START + b"X\x01\0\0\0\xff.", "not UTF-8"),
    "half a surrogate": (START + b"X\x03\0\0\0\xed\xa0\x80.", "not UTF-8"),
    "a name without an end": (START + b"cposix" + b"x" * 10_000, "a name without an end"),
    "a name that is a number": (START + b"K\x01K\x01\x93.", "by what is no name"),
    "a name that is a book": (START + text("a" * 5000) + text("b") + b"\x93.", "by what is no name"),
    "a value of the memo that is none": (START + b"h\x05.", "recalls value 5 of 0"),
    "a memo with holes": (START + b"Nr\xff\xff\xff\x7f.", "remembers value 2,147,483,647"),
    "nothing to remember": (START + b"q\0.", "where there is none"),
    "nothing to append to": (START + b"(NNe.", "where there is none"),
    "an append across a mark": (START + b"](a.", "where there is none"),
    "a tuple across a mark": (START + b"N(N\x86.", "where there are none"),
    "a tuple without a mark": (START + b"Nt.", "after a mark"),
    "an append to a tuple": (START + b")Na.", "no list"),
    "an item of a list": (START + b"]NNs.", "no dict"),
    "half an item": (START + b"}(Nu.", "no dict"),
    "a call of a string": (START + text("system") + b")R.", "cannot be applied"),
    "a call with a list": (START + ORDERED + b"]R.", "cannot be applied"),
    "a call with more than it takes": (START + called(ORDERED, b"N") + b".", r"gives collections\.OrderedDict what"),
    "attributes of a list": (START + b"]}b.", "sets attributes of what is no dict"),
    "attributes that are a list": (START + b"}]b.", "sets attributes of what is no dict"),
    "a frame longer than it": (b"\x80\x04\x95" + struct.pack("<Q", 99) + b"N.", "frame that is longer"),
    "a key twice": (START + b"}(" + text("a") + b"N" + text("a") + b"Nu.", "same key twice"),
    "a key as a number and a truth": (START + b"}(K\x01N\x88Nu.", "same key twice"),
    "a tuple as a key": (START + b"})Ns.", "a key that is no name"),
    "a key of a thousand bits": (START + b"}" + integer(2**1000) + b"Ns.", "a key that is no name"),
    "bytes of other letters": (
        START + called(named("_codecs", "encode"), text("日"), text("latin1")) + b".", r"gives _codecs\.encode what",
    ),
    "bytes in another code": (
        START + called(named("_codecs", "encode"), text("a"), text("idna")) + b".", r"gives _codecs\.encode what",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNSOUND)
def test_an_unsound_pickle_is_a_model_error(what: str) -> None:
    data, complaint = UNSOUND[what]
    with pytest.raises(ModelError, match=complaint):
        interpreted(data)


def test_instructions_that_no_state_dict_needs_are_refused() -> None:
    known = {code for values in (1, 1.5, "a", b"a", {"a": (1, [2], {3}, frozenset((4,)))})
             for protocol in (2, 5) for code, _, _ in pickletools.genops(pickle.dumps(values, protocol))}  # fmt: skip
    assert known
    refused = [op for op in pickletools.opcodes if op.name in {
        "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "POP", "POP_MARK", "DUP", "GET", "PUT",
        "INT", "LONG", "LONG4", "FLOAT", "STRING", "UNICODE", "LIST", "DICT", "BYTEARRAY8", "NEXT_BUFFER",
    }]  # fmt: skip
    assert len(refused) == 23
    for op in refused:
        with pytest.raises(ModelError, match=f"instruction {ord(op.code):#04x}"):
            interpreted(START + b"}(" + op.code.encode("latin1") + bytes(20))


@given(data=st.binary(max_size=60))
def test_noise_is_a_value_or_a_model_error(data: bytes) -> None:
    with suppress(ModelError):
        interpreted(START + data)


def test_a_pickle_that_is_cut_short_is_a_model_error() -> None:
    data = pickled({"a": tuple_of(integer(2**40), ORDERED), "b": dict_of({"c": text("d")})})
    interpreted(data)
    for end in range(len(data)):
        with pytest.raises(ModelError):
            interpreted(data[:end])


def test_constructors_are_called_a_bounded_number_of_times() -> None:
    ordered = ORDERED + pickle.BINPUT + b"\0" + b")" + pickle.REDUCE
    again = pickle.BINGET + b"\0" + b")" + pickle.REDUCE
    with pytest.raises(ModelError, match="more than 200,000 values that are constructed"):
        interpreted(START + ordered + again * MAX_CALLS)


def test_constructors_are_what_may_be_called() -> None:
    assert all(name == value.name for name, value in NAMES.items() if isinstance(value, Constructor))


BOMBS = """
import struct, sys, time
from entrenar_core.errors import ModelError
from entrenar_core.formats.pickles import MAX_INSTRUCTIONS as MOST, interpret
from entrenar_core.formats.pytorch_values import NAMES, Storage
from torch_files import START, called, named, tensor, text, tuple_of

FOUR = b"\\x80\\x04"
once = tensor()[:-1]  # all but the call
bombs = {
    "dicts": lambda: START + b"}" * MOST,
    "sets that are remembered": lambda: FOUR + b"\\x8f\\x94" * (MOST // 2),
    "tuples inside each other": lambda: START + b"N" + b"\\x85" * (MOST - 9) + b".",
    "a large dict": lambda: START + b"}(" + b"".join(
        b"J" + struct.pack("<i", number) + b"N" for number in range(MOST // 2 - 9)
    ) + b"u.",
    "a dict of hashes that collide": lambda: START + b"}(" + b"N".join(
        b"\\x8a\\x20" + ((2**61 - 1) * number).to_bytes(32, "little") for number in range(100_000)
    ) + b"Nu.",
    "the same long key": lambda: START + b"}q\\x00" + (b"h\\x00" + text("k" * 500_000) + b"Ns") * 60,
    "strings": lambda: FOUR + b"\\x8c\\x02ab" * MOST,
    "wide strings": lambda: START + text("\\U0001f600" + "a" * 15_900_000) * 2,
    "bytes of a long string": lambda: (
        START + named("_codecs", "encode") + b"q\\x00" + tuple_of(text("a" * 15_000_000), text("latin1")) + b"q\\x01R"
        + b"h\\x00h\\x01R" * 1000
    ),
    "marks": lambda: START + b"N(" * (MOST // 2),
    "tensors": lambda: START + once.replace(b"(", b"q\\x00(", 1) + b"q\\x01R" + b"h\\x00h\\x01R" * (MOST // 3),
    "a long shape for many tensors": lambda: (
        START + b"(" + b"K\\x01" * 300_000 + b"tq\\x00" + named("torch", "Size") + b"q\\x01"
        + b"h\\x01h\\x00\\x85R" * (MOST // 5)
    ),
}
limit = 8 if sys.gettrace() is None else 60  # while coverage is measured, time is not
for name, bomb in bombs.items():
    data = bomb()
    started = time.process_time()
    try:
        interpret(data, NAMES.__getitem__, lambda told: Storage("0", NAMES["torch.float32"], 4), ModelError)
    except ModelError:
        pass
    took = time.process_time() - started
    if took > limit:
        sys.exit(f"{name}: {took:.1f} s")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_bombs_take_neither_long_nor_much() -> None:
    run = subprocess.run(
        [sys.executable, "-c", BOMBS], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 200_000, "kB, with the bomb itself"
