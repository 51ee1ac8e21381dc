"""What hf_xet stored in a folder that stands for a Xet storage.

A file there is named by a hash of its chunks; the shards say which SHA-256 that is. Source: xet-core's file format of
shards (https://huggingface.co/docs/xet/shard): after a header of 48 bytes come the files, in entries of 48 bytes.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

_ENTRY = 48
_VERIFIED, _WITH_SHA256 = 1 << 31, 1 << 30


def stored_by_xet(folder: Path, sha256: str) -> bytes:
    """The bytes of the file with this SHA-256, put together again by hf_xet."""
    import hf_xet  # type: ignore[import-untyped]

    names = dict(pair for shard in folder.rglob("shards/*.mdb") for pair in _files(shard.read_bytes()))
    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside) / "file"
        with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{folder}") as group:
            group.start_download_file(hf_xet.XetFileInfo(*names[sha256]), str(file))
        return file.read_bytes()


def _files(shard: bytes) -> Iterator[tuple[str, tuple[str, int]]]:
    """SHA-256, and the name and size that Xet gives it, of every file in a shard."""
    position = _ENTRY
    while shard[position : position + 32] != b"\xff" * 32:
        name = _hexadecimal(shard[position : position + 32])
        flags, count = (int.from_bytes(shard[position + at : position + at + 4], "little") for at in (32, 36))
        entries = [shard[at : at + _ENTRY] for at in range(position + _ENTRY, position + _ENTRY * (count + 1), _ENTRY)]
        size = sum(int.from_bytes(entry[36:40], "little") for entry in entries)
        position += _ENTRY * (1 + count * (2 if flags & _VERIFIED else 1))
        if flags & _WITH_SHA256:
            yield _hexadecimal(shard[position : position + 32]), (name, size)
            position += _ENTRY


def _hexadecimal(digest: bytes) -> str:
    """As Xet writes one: four numbers of 64 bits, each lowest byte first in the file."""
    return "".join(digest[at : at + 8][::-1].hex() for at in range(0, 32, 8))
