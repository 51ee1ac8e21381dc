"""What tests of pushing share: a model to push, and what arrived of it."""

import os
from pathlib import Path
from typing import Any

from entrenar_core.hub import Pushed, push_folder
from hub_content import Repository
from hub_server import HubServer

OURS = {".gitattributes"}


def shards_of_noise(folder: Path) -> Path:
    """Weights in two shards of noise, with what lies beside them."""
    folder.mkdir()
    for shard, size in ((1, 300_000), (2, 200_000)):
        (folder / f"model-{shard:05d}-of-00002.safetensors").write_bytes(os.urandom(size))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return folder


def push(folder: Path, repo: str = "org/model", **settings: Any) -> Pushed:
    """Pushes a folder, trying twice more without a pause."""
    return push_folder(folder, repo, **{"retry_delays_s": (0, 0), **settings})


def repository(hub: HubServer, repo: str = "org/model") -> Repository:
    return hub.repositories["model", repo]


def there(hub: HubServer, repo: str = "org/model") -> dict[str, bytes]:
    """What the main branch holds."""
    found = repository(hub, repo)
    return {name: file.content for name, file in found.commits[found.refs["main"]].items() if name not in OURS}
