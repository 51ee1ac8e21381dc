"""The `hub` fixture: a fresh `HubServer`, with an environment in which clients find it, and no one's real login.

A plugin: `pytest_plugins = ["hub_fixtures"]`.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_content import SECRET
from hub_server import HubServer
from tiny_models import tiny_llama

_READ_BY_CLIENTS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_OIDC_RESOURCE",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "XDG_CACHE_HOME",
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A server of its own, set as HF_ENDPOINT; home, cache and login are empty folders. Child processes inherit it.

    `datasets` and `transformers` read the endpoint when they are imported: to drive them, start a child process.
    """
    for name in _READ_BY_CLIENTS:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "huggingface"))
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture
def writable_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub where the login of the environment, `SECRET`, may write."""
    hub.tokens.add(SECRET)
    hub.writers.add(SECRET)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    return hub


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama to serve; not to be written to."""
    return tiny_llama(tmp_path_factory.mktemp("llama") / "llama")
