"""Files of text that a user names."""

from pathlib import Path

from entrenar_core.errors import DataError, NotFoundError


def plain_text(file: Path, purpose: str) -> str:
    """What a file in UTF-8 holds; `purpose` ends the hint, such as `to calibrate on`.

    Raises:
        NotFoundError: there is no such file.
        DataError: it cannot be read, or is no text.
    """
    hint = f"name a file of text {purpose}"
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"{file} does not exist", hint) from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}", hint) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not a text in UTF-8", hint) from error
