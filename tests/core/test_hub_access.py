"""Who may fetch from the Hub, what is not there, and that no one sees the token."""

import os
import traceback
from pathlib import Path

import pytest

from entrenar_core.errors import AccessError, FetchError, NotFoundError, UsageError
from entrenar_core.hub import list_files, resolve_token
from entrenar_core.hub.client import Repository, connect
from entrenar_core.hub.transfer import RemoteFile, fetch_files, listing
from entrenar_core.references import PathReference
from hub_client import cached_contents, fetch, run_python
from hub_server import HubServer

pytest_plugins = ["hub_fixtures"]

SECRET = "hf_a-secret-that-nobody-may-see"


def test_the_login_goes_to_the_hub_and_not_to_its_storage(hub: HubServer, llama_folder: Path) -> None:
    hub.tokens.add(SECRET)
    hub.add("org/llama", llama_folder).gate(SECRET)
    fetch(token=SECRET)
    sent = {(request.path.startswith("/blob"), request.authorization) for request in hub.requests}
    assert sent == {(False, f"Bearer {SECRET}"), (True, None)}


@pytest.mark.parametrize(
    ("token", "complaint", "hint"),
    [
        (None, "org/llama is gated: it needs a login", "ask for access at {url}/org/llama, then log in with `hf auth"),
        ("hf_other", "the login in use has no access to org/llama", "ask for it at {url}/org/llama"),
        (SECRET, "does not know the login in use", "it may have expired: log in"),
    ],
)
def test_a_gated_repository_says_how_to_get_in(
    hub: HubServer, llama_folder: Path, token: str | None, complaint: str, hint: str
) -> None:
    hub.tokens.add("hf_other")
    hub.add("org/llama", llama_folder).gate("hf_granted")
    with pytest.raises(AccessError, match=complaint) as refused:
        fetch(token=token)
    assert hint.format(url=hub.url) in str(refused.value.hint)
    assert not cached_contents()
    whole = "".join(traceback.format_exception(refused.value)) + repr(refused.value) + str(refused.value.hint)
    assert token is None or token not in whole


def test_a_private_repository_looks_missing_to_strangers(hub: HubServer, llama_folder: Path) -> None:
    repository = hub.add("org/llama", llama_folder)
    repository.private = True
    repository.gate(SECRET)
    hub.tokens |= {SECRET, "hf_other"}
    with pytest.raises(NotFoundError, match="has no model org/llama, or does not show it") as stranger:
        fetch()
    assert "if it is private, log in" in str(stranger.value.hint)
    with pytest.raises(NotFoundError, match="or does not show it"):
        fetch(token="hf_other")
    assert fetch(token=SECRET).commit


def test_the_login_is_looked_for_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    assert resolve_token() is None
    home = Path(os.environ["HOME"])
    for path, token in ((home / ".huggingface/token", "hf_old"), (home / "huggingface/token", "hf_new\n")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(token)
        assert resolve_token() == token.strip()
    (tmp_path / "elsewhere").write_text("hf_elsewhere")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "elsewhere"))
    assert resolve_token() == "hf_elsewhere"
    monkeypatch.setenv("HF_TOKEN", " hf_environment ")
    assert resolve_token() == "hf_environment"
    assert resolve_token("hf_explicit") == "hf_explicit"


@pytest.mark.parametrize("token", [f"{SECRET}\nX-Injected: 1", f"{SECRET}é", f"{SECRET} two", f"{SECRET}\0"])
def test_what_cannot_be_a_token_is_refused_without_being_shown(hub: HubServer, token: str) -> None:
    with pytest.raises(AccessError, match="holds characters that no token has") as refused:
        fetch(token=token)
    assert SECRET not in "".join(traceback.format_exception(refused.value))
    assert not hub.requests


def test_a_stored_login_that_cannot_be_read_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", os.environ["HOME"])
    with pytest.raises(AccessError, match="cannot be read"):
        resolve_token()


def test_no_repr_shows_the_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    client = connect()
    assert client.token == SECRET
    assert SECRET not in repr(client)
    assert connect(offline=True).token is None


def test_a_browser_login_that_runs_out_is_renewed(hub: HubServer) -> None:
    folder = Path(os.environ["HF_HOME"])
    folder.mkdir(parents=True)
    (folder / "token").write_text("hf_expiring")
    stored = "[me]\nhf_token = hf_expiring\nrefresh_token = again\nexpires_at = 1\n"
    (folder / "stored_tokens").write_text(stored)
    code = "from entrenar_core.hub import resolve_token; print(resolve_token())"
    assert run_python(code).stdout == "renewed-by-again\n"


def test_repository_revision_and_file_are_missed_each_by_name(hub: HubServer, llama_folder: Path) -> None:
    hub.add("org/llama", llama_folder)
    with pytest.raises(NotFoundError, match=f"{hub.url} has no model org/nothing") as repository:
        fetch("org/nothing")
    with pytest.raises(NotFoundError, match="org/llama has no revision v9") as revision:
        fetch("org/llama@v9")
    with pytest.raises(NotFoundError, match=r"org/llama has no weights called none\.safetensors") as weights:
        fetch(files=["none.safetensors"])
    client = connect()
    at = Repository("model", "org/llama")
    commit, _ = listing(client, at)
    with pytest.raises(NotFoundError, match=r"there is no gone\.txt of org/llama") as file:
        fetch_files(client, at, commit, [RemoteFile("gone.txt", 1, None, "0" * 40)])
    assert all(missed.value.hint for missed in (repository, revision, weights, file))


def test_the_name_of_a_repository_is_checked_where_no_reference_was_parsed(hub: HubServer) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a repository"):
        list_files("a/b/c")


def test_a_server_that_is_no_hub_cannot_lead_out_of_the_cache(hub: HubServer, llama_folder: Path) -> None:
    repository = hub.add("org/llama", llama_folder)
    repository.commits["../../../out"] = repository.commits[repository.refs["main"]]
    repository.refs["main"] = "../../../out"
    with pytest.raises(FetchError, match="names no commit"):
        fetch()


def test_missing_local_things_touch_no_network(hub: HubServer, llama_folder: Path) -> None:
    for text in ("./nowhere", "nothing.gguf", "pkg://no_such_package/model"):
        with pytest.raises(NotFoundError):
            fetch(text)
    assert fetch(str(llama_folder)).reference == PathReference(str(llama_folder))
    assert not hub.requests
