"""Works out what a pickle describes, without calling or importing anything that it names.

A pickle is a program for a small stack machine. What it may do here is build dicts, lists, tuples, strings and numbers,
and apply the constructors that its reader knows by name; any other name or instruction in it is an error. Sets become
lists, frozen ones tuples, and attributes that are set on a dict (BUILD) are left out.

A hostile pickle costs no more than its length allows: instructions and the bytes of strings are bounded, keys of dicts
are plain, and nothing is copied, compared, printed or walked through that could be long, or nested in itself.

Source: CPython's Lib/pickletools.py, protocols 2 to 5.
"""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import Struct

from entrenar_core.errors import ModelError

MAX_BYTES = 32_000_000
MAX_INSTRUCTIONS = 1_000_000
"""About 32 describe a tensor: enough for 31,000 of them."""
MAX_CALLS = 200_000
"""Of constructors, of which a parameter needs four."""
MAX_TEXT_BYTES = 32_000_000
"""What all strings may take in memory together."""
MAX_NAME_BYTES = 200
_KEYS = (str, int, bool)
_INTEGER_KEYS = range(-(2**63), 2**64)
"""Of longer integers any number can have the same hash, which makes a dict slow."""
_STRING_BYTES = 56
_OLDER = {"__builtin__": "builtins"}
"""Modules as protocol 2 has them."""


class Unacceptable(ValueError):
    """Arguments that no sound pickle gives a constructor."""


@dataclass(frozen=True, slots=True)
class Constructor:
    """What a pickle may apply to arguments.

    `build` makes a value of them in a time that does not depend on them, or raises `Unacceptable`.
    """

    name: str
    build: Callable[[tuple[object, ...]], object]


def interpret(
    data: bytes,
    find: Callable[[str], object],
    persistent: Callable[[object], object],
    fail: Callable[[str], ModelError],
) -> object:
    """The value that a pickle describes.

    Args:
        find: gives what a name stands for, a `Constructor` or any value. It has the form `module.name`, with the
            modules of Python 3, and comes from the file as it is. Refuses by a ModelError.
        persistent: gives a value that lies outside of the pickle, by what that says of it; or raises `Unacceptable`.
        fail: makes an error of what is wrong.

    Raises:
        ModelError: the pickle is unsound or takes too much, or a name is refused.
    """
    return _Machine(data, find, persistent, fail).run()


class _Machine:
    def __init__(
        self,
        data: bytes,
        find: Callable[[str], object],
        persistent: Callable[[object], object],
        fail: Callable[[str], ModelError],
    ) -> None:
        self.data, self.at = data, 0
        self.find, self.persistent, self.fail = find, persistent, fail
        self.stack: list[object] = []
        self.floor, self.floors = 0, list[int]()  # where the last mark is on the stack, and where those before it are
        self.memo: list[object] = []
        self.text_bytes = self.calls = 0

    def run(self) -> object:
        if self.take(1) != pickle.PROTO or self.take(1)[0] not in range(2, 6):
            raise self.fail("its pickle is of none of the protocols 2 to 5")
        data, end = self.data, len(self.data)
        for _ in range(MAX_INSTRUCTIONS):
            if self.at >= end:
                raise self.fail(f"its pickle ends at byte {end:,}, before it is complete")
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self.result()
            _STEPS[code](self)
        raise self.fail(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions")

    def result(self) -> object:
        if len(self.stack) != 1 or self.floors or self.at != len(self.data):
            raise self.fail("its pickle does not end with its one value")
        return self.stack[0]

    def wrong(self, what: str) -> ModelError:
        return self.fail(f"its pickle {what}, before byte {self.at:,}")

    def take(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise self.fail(f"its pickle ends at byte {len(self.data):,}, before it is complete")
        return self.data[start : self.at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def top(self) -> object:
        if len(self.stack) <= self.floor:
            raise self.wrong("takes a value where there is none")
        return self.stack[-1]

    def pop(self) -> object:
        if len(self.stack) <= self.floor:
            raise self.wrong("takes a value where there is none")
        return self.stack.pop()

    def mark(self) -> None:
        self.floors.append(self.floor)
        self.floor = len(self.stack)

    def pop_marked(self) -> list[object]:
        if not self.floors:
            raise self.wrong("takes values after a mark where there is none")
        values = self.stack[self.floor :]
        del self.stack[self.floor :]
        self.floor = self.floors.pop()
        return values

    def remember(self, place: int) -> None:
        if place != len(self.memo):
            raise self.wrong(f"remembers value {place:,} after {len(self.memo):,} others")
        self.memo.append(self.top())

    def recall(self, place: int) -> None:
        if place >= len(self.memo):
            raise self.wrong(f"recalls value {place:,} of {len(self.memo):,}")
        self.stack.append(self.memo[place])

    def text(self, width: int) -> None:
        raw = self.take(self.number(width))
        self.spend(len(raw) if raw.isascii() else 4 * len(raw))
        try:
            self.stack.append(raw.decode())
        except UnicodeDecodeError as error:
            raise self.wrong("has a string that is not UTF-8") from error

    def raw(self, width: int) -> None:
        raw = self.take(self.number(width))
        self.spend(len(raw))
        self.stack.append(raw)

    def spend(self, size: int) -> None:
        self.text_bytes += size + _STRING_BYTES
        if self.text_bytes > MAX_TEXT_BYTES:
            raise self.fail(f"the strings in its pickle take more than {MAX_TEXT_BYTES:,} bytes")

    def tuple_of(self, length: int) -> None:
        if len(self.stack) - self.floor < length:
            raise self.wrong("takes values where there are none")
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def extend(self, values: list[object]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise self.wrong("appends to what is no list")
        target += values

    def update(self, values: list[object]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(values) % 2:
            raise self.wrong("sets items of what is no dict")
        pairs = iter(values)
        for key, value in zip(pairs, pairs, strict=True):
            if type(key) not in _KEYS or (type(key) is int and key not in _INTEGER_KEYS):
                raise self.wrong("has a dict with a key that is no name")
            if key in target:
                raise self.wrong("has a dict with the same key twice")
            target[key] = value

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + MAX_NAME_BYTES)
        if end < 0:
            raise self.wrong("has a name without an end")
        raw, self.at = self.data[self.at : end], end + 1
        return raw.decode(errors="replace")

    def look_up(self, name: object, module: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > 2 * MAX_NAME_BYTES:
            raise self.wrong("names something by what is no name")
        self.stack.append(self.find(f"{_OLDER.get(module, module)}.{name}"))

    def reduce(self) -> None:
        arguments, constructor = self.pop(), self.pop()
        if not isinstance(constructor, Constructor) or not isinstance(arguments, tuple):
            raise self.wrong("applies what cannot be applied")
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise self.fail(f"its pickle has more than {MAX_CALLS:,} values that are constructed")
        try:
            value = constructor.build(arguments)
        except Unacceptable as error:
            raise self.wrong(f"gives {constructor.name} what it does not take") from error
        self.spend(len(value) if isinstance(value, bytes) else 0)
        self.stack.append(value)

    def fetch(self) -> None:
        try:
            self.stack.append(self.persistent(self.pop()))
        except Unacceptable as error:
            raise self.wrong(f"speaks of data in a way that torch does not: {error}") from error

    def build(self) -> None:
        if not isinstance(self.pop(), dict) or not isinstance(self.top(), dict):
            raise self.wrong("sets attributes of what is no dict")

    def frame(self) -> None:
        if self.number(8) > len(self.data) - self.at:
            raise self.wrong("has a frame that is longer than it")

    def unknown(self) -> None:
        raise self.wrong(f"has the instruction {self.data[self.at - 1]:#04x}, which no state dict needs")


def _fixed(code: str) -> Callable[[_Machine], None]:
    form = Struct(code)

    def step(machine: _Machine) -> None:
        machine.stack += form.unpack(machine.take(form.size))

    return step


_STOP = pickle.STOP[0]
_KNOWN: Mapping[bytes, Callable[[_Machine], None]] = {
    pickle.NONE: lambda machine: machine.push(None),
    pickle.NEWTRUE: lambda machine: machine.push(True),
    pickle.NEWFALSE: lambda machine: machine.push(False),
    pickle.BININT: _fixed("<i"),
    pickle.BININT1: _fixed("<B"),
    pickle.BININT2: _fixed("<H"),
    pickle.BINFLOAT: _fixed(">d"),
    pickle.LONG1: lambda machine: machine.push(int.from_bytes(machine.take(machine.number(1)), "little", signed=True)),
    pickle.SHORT_BINUNICODE: lambda machine: machine.text(1),
    pickle.BINUNICODE: lambda machine: machine.text(4),
    pickle.BINUNICODE8: lambda machine: machine.text(8),
    pickle.SHORT_BINBYTES: lambda machine: machine.raw(1),
    pickle.BINBYTES: lambda machine: machine.raw(4),
    pickle.BINBYTES8: lambda machine: machine.raw(8),
    pickle.EMPTY_DICT: lambda machine: machine.push({}),
    pickle.EMPTY_LIST: lambda machine: machine.push([]),
    pickle.EMPTY_SET: lambda machine: machine.push([]),
    pickle.EMPTY_TUPLE: lambda machine: machine.push(()),
    pickle.TUPLE1: lambda machine: machine.tuple_of(1),
    pickle.TUPLE2: lambda machine: machine.tuple_of(2),
    pickle.TUPLE3: lambda machine: machine.tuple_of(3),
    pickle.TUPLE: lambda machine: machine.push(tuple(machine.pop_marked())),
    pickle.FROZENSET: lambda machine: machine.push(tuple(machine.pop_marked())),
    pickle.APPEND: lambda machine: machine.extend([machine.pop()]),
    pickle.APPENDS: lambda machine: machine.extend(machine.pop_marked()),
    pickle.ADDITEMS: lambda machine: machine.extend(machine.pop_marked()),
    pickle.SETITEM: lambda machine: machine.update([machine.pop(), machine.pop()][::-1]),
    pickle.SETITEMS: lambda machine: machine.update(machine.pop_marked()),
    pickle.MARK: _Machine.mark,
    pickle.BINPUT: lambda machine: machine.remember(machine.number(1)),
    pickle.LONG_BINPUT: lambda machine: machine.remember(machine.number(4)),
    pickle.MEMOIZE: lambda machine: machine.remember(len(machine.memo)),
    pickle.BINGET: lambda machine: machine.recall(machine.number(1)),
    pickle.LONG_BINGET: lambda machine: machine.recall(machine.number(4)),
    pickle.GLOBAL: lambda machine: machine.look_up(*[machine.line(), machine.line()][::-1]),
    pickle.STACK_GLOBAL: lambda machine: machine.look_up(machine.pop(), machine.pop()),
    pickle.REDUCE: _Machine.reduce,
    pickle.BUILD: _Machine.build,
    pickle.BINPERSID: _Machine.fetch,
    pickle.FRAME: _Machine.frame,
}
_STEPS = tuple(_KNOWN.get(bytes((code,)), _Machine.unknown) for code in range(256))
