"""Where entrenar keeps what it has measured or made for later runs of this user."""

import os
from pathlib import Path


def user_folder() -> Path:
    """`$ENTRENAR_HOME`, or `entrenar` in the user's cache folder; it may not be there yet."""
    if home := os.environ.get("ENTRENAR_HOME"):
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entrenar"
