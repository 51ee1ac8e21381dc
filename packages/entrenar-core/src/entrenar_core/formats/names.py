"""Names of tensors that a program might trip over, which no writer of models gives by itself."""

MAX_NAME_BYTES = 4096
MAX_LETTERS = 65_535
"""What has a longer name is no tensor: readers refuse it."""
_SHOWN_LETTERS = 200


def odd_name(name: str) -> str | None:
    """What is wrong with a name, as the rest of a sentence; None where nothing is."""
    if not name:
        return "has no name"
    if not name.isprintable():
        return "has characters in its name that steer terminals"
    if name.startswith("/") or ".." in name.replace("\\", "/").split("/"):
        return "has a name that leads out of a folder"
    return "has a name of more than 4,096 bytes" if len(name.encode()) > MAX_NAME_BYTES else None


def shown(name: str) -> str:
    """A name as errors have it: of a long one, the start."""
    return name if len(name) <= _SHOWN_LETTERS else f"{name[:_SHOWN_LETTERS]}…"
