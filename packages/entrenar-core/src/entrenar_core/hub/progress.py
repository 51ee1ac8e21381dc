"""How far a download is, over all of its files."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from entrenar_core.errors import FetchError

_MAX_REWINDS = 5


@dataclass(frozen=True, slots=True)
class Transfer:
    """How far a download is: bytes over all of its files, and the file that is under way.

    `done_bytes` falls back where a file has to start anew.
    """

    name: str
    done_bytes: int
    total_bytes: int


Progress = Callable[[Transfer], None]


class Meter:
    """Adds up the bytes of several downloads, for one callback."""

    def __init__(self, progress: Progress | None, total_bytes: int) -> None:
        self.progress, self.total_bytes = progress, total_bytes
        self.finished_bytes = self.file_bytes = self.rewinds = 0
        self.name = ""

    def start(self, name: str) -> None:
        self.name, self.rewinds = name, 0

    def restart(self) -> None:
        self.file_bytes = 0

    def move(self, size: float) -> None:
        if size < 0:  # a server that ignores ranges sends the file from its start, again and again
            self.rewinds += 1
            if self.rewinds > _MAX_REWINDS:
                raise FetchError(
                    f"{self.name}: the connection breaks each time, and the server cannot continue a file",
                    "try a better network, or another endpoint",
                )
        self.file_bytes += int(size)
        self.report()

    def finish(self, size_bytes: int) -> None:
        self.finished_bytes += size_bytes
        self.file_bytes = 0
        self.report()

    def report(self) -> None:
        if self.progress is not None:
            self.progress(Transfer(self.name, self.finished_bytes + self.file_bytes, self.total_bytes))

    def bar_class(self) -> type[Any]:
        """What huggingface_hub moves instead of a bar of its own: nothing is drawn."""
        from tqdm import tqdm

        class Bar(tqdm):  # type: ignore[misc]
            meter: ClassVar[Meter] = self

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs | {"disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                self.meter.move(n or 0)
                return None

            def update_transfer(self, n: float) -> None:
                """Bytes from the network, which for deduplicated (Xet) files are not those of the file."""

            def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None:
                """Nothing is drawn."""

        return Bar
