"""Shards of a cache: files of safetensors that hold rows of different lengths one behind the other.

Beside its arrays, whose first axis runs over what all rows have of them, a shard holds the key of each row, where it
starts in each array, and a checksum of what is kept of it. A shard is written aside and renamed, so that one that is
there is whole; what a disk changes in it later is found when the row is read.

Shapes: R rows, A arrays.
"""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from entrenar_core.errors import DataError
from entrenar_core.teachers.cache.keys import KEY_BYTES
from entrenar_core.teachers.cache.settings import AGAIN
from entrenar_core.training.files import writing

Arrays = Mapping[str, np.ndarray]
"""What is kept of a row, or of several: arrays of any length, by their names."""
_KEYS, _STARTS, _CHECKS = "row.keys", "row.starts", "row.checksums"
_ABOUT = "about"
_OWN = frozenset((_KEYS, _STARTS, _CHECKS))
_DTYPES = {"U8": "<u1", "I8": "<i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "I64": "<i8",
           "F16": "<f2", "F32": "<f4", "F64": "<f8"}  # fmt: skip


def write_shard(file: Path, keys: Sequence[bytes], rows: Sequence[Arrays], about: Mapping[str, str]) -> None:
    """Writes rows, whose arrays have the same names, widths and dtypes, with a few words about the shard.

    Raises:
        OutputError: it cannot be written.
    """
    from safetensors.numpy import save_file

    names = sorted(rows[0])
    tensors = {name: np.ascontiguousarray(np.concatenate([row[name] for row in rows])) for name in names}
    tensors[_KEYS] = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), KEY_BYTES)
    lengths_RA = np.array([[len(row[name]) for name in names] for row in rows], np.int64)
    tensors[_STARTS] = np.concatenate([np.zeros((1, len(names)), np.int64), lengths_RA.cumsum(0)])
    tensors[_CHECKS] = np.array([_checksum(key, row) for key, row in zip(keys, rows, strict=True)], np.uint32)
    aside = file.with_name(f".{file.name}.partial")
    with writing(file):
        try:
            save_file(tensors, aside, metadata={_ABOUT: json.dumps(about, sort_keys=True)})  # several have no order
            with aside.open("rb") as written:
                os.fsync(written.fileno())
            aside.chmod(file.parent.stat().st_mode & 0o666)  # as other files here; safetensors makes its own private
            aside.replace(file)
        finally:
            aside.unlink(missing_ok=True)


class Shard:
    """A shard that is read where it lies: what is asked for is what is copied.

    Raises:
        DataError: it is not there, or no shard.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.about, self._arrays = _mapped(file)
        if not self._arrays.keys() >= _OWN:
            raise DataError(f"{file} is no shard of a cache", AGAIN)
        self.names = tuple(sorted(self._arrays.keys() - _OWN))
        self.keys_RK = self._arrays[_KEYS]
        self._starts_RA, self._checks_R = (np.array(self._arrays[name]) for name in (_STARTS, _CHECKS))
        self._require_consistent()

    def __len__(self) -> int:
        return len(self.keys_RK)

    def row(self, index: int) -> dict[str, np.ndarray]:
        """What is kept of a row, from its place in the shard.

        Raises:
            DataError: it is not what was written.
        """
        starts_2A = self._starts_RA[index : index + 2].tolist()
        bounds = zip(self.names, *starts_2A, strict=True)
        found = {name: self._arrays[name][start:stop] for name, start, stop in bounds}
        if _checksum(self.keys_RK[index].tobytes(), found) != self._checks_R[index]:
            raise DataError(f"{self.file} is damaged: row {index} is not what was written", AGAIN)
        return found

    def _require_consistent(self) -> None:
        rows, ends_A = len(self), [len(self._arrays[name]) for name in self.names]
        shapes = self.keys_RK.shape[1:] == (KEY_BYTES,) and self._checks_R.shape == (rows,)
        if (
            not shapes
            or self._starts_RA.shape != (rows + 1, len(self.names))
            or (np.diff(self._starts_RA, axis=0) < 0).any()
            or (self._starts_RA[0] != 0).any()
            or (self._starts_RA[-1] != ends_A).any()
        ):
            raise DataError(f"{self.file} is damaged: its rows do not add up", AGAIN)


def _checksum(key: bytes, row: Arrays) -> int:
    """CRC-32 over the key and the name and the bytes of every array, in the order of their names."""
    found = zlib.crc32(key)
    for name in sorted(row):
        found = zlib.crc32(np.ascontiguousarray(row[name]).data, zlib.crc32(name.encode(), found))
    return found


def _mapped(file: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata and the tensors of a file of safetensors, as arrays over its mapped bytes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as checked:  # which bounds what follows
            about = json.loads((checked.metadata() or {}).get(_ABOUT, "{}"))
        data = np.asarray(np.memmap(file, np.uint8, mode="r"))  # slices of a plain array are made much faster
        size = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + size].tobytes())
        header.pop("__metadata__", None)
        tensors = {}
        for name, tensor in header.items():
            start, stop = tensor["data_offsets"]
            flat = data[8 + size + start : 8 + size + stop]
            tensors[name] = flat.view(_DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    except FileNotFoundError:
        raise DataError(f"{file} is missing", AGAIN) from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged: {error}", AGAIN) from error
    return about, tensors
