"""From a reference to a model on this machine, fetching of a repository exactly the files that are needed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from entrenar_core.architectures import Architecture, architecture_of
from entrenar_core.artifact import SENTENCE_FILES, TOKENIZER_FILES, ModelArtifact, inspect_folder
from entrenar_core.errors import ModelError, NotFoundError
from entrenar_core.formats import WeightFormat, Weights, choose_weights, format_of, read_json, shards_of
from entrenar_core.formats.onnx import external_files
from entrenar_core.hub.client import RETRY_DELAYS_S, Client, Repository, connect, hinting_at_offline
from entrenar_core.hub.progress import Progress
from entrenar_core.hub.transfer import RemoteFile, cached_snapshot, fetch_files, listing
from entrenar_core.references import HubReference, Reference

COMPANIONS = ("config.json", "generation_config.json", *TOKENIZER_FILES, *SENTENCE_FILES)
"""What is fetched beside weights, unless they are a GGUF, which holds it all."""


def fetch_model(
    reference: Reference,
    *,
    format: WeightFormat | None = None,  # noqa: A002 - as the setting is called
    files: Sequence[str] | None = None,
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    weights_needed: bool = True,
    token: str | None = None,
    cache_dir: Path | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
    endpoint: str | None = None,
    retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
) -> ModelArtifact:
    """The model that a reference means, on this machine; what lies here already touches no network.

    A repository's Python files are fetched where they are trusted, and never run here. Weights that are not needed are
    not fetched, unless they are a GGUF or ONNX, which the rest is read from.

    Raises:
        AccessError: the repository is gated or private.
        NotFoundError: there is no such file, folder, package, repository or revision, or offline no cached one.
        FetchError: a download did not arrive whole.
        ModelError: the weights cannot be chosen or read (see `inspect_folder`).
    """
    if not isinstance(reference, HubReference):
        return inspect_folder(
            reference.locate(),
            format=format,
            files=files,
            allow_pickle=allow_pickle,
            weights_needed=weights_needed,
            reference=reference,
        )
    client = connect(
        token=token, cache_dir=cache_dir, offline=offline, endpoint=endpoint, retry_delays_s=retry_delays_s
    )
    repository = Repository("model", reference.repo_id, reference.revision)
    if client.offline:
        commit, folder = cached_snapshot(client, repository)
        with hinting_at_offline(client):
            return inspect_folder(
                folder,
                format=format,
                files=files,
                allow_pickle=allow_pickle,
                weights_needed=weights_needed,
                reference=reference,
                commit=commit,
            )
    commit, remote = listing(client, repository)
    weights = choose_weights(remote.keys(), where=str(reference), format=format, files=files, allow_pickle=allow_pickle)
    code = [name for name in remote if name.endswith(".py")] if trust_remote_code else []
    needed = _needed(client, repository, commit, remote, weights, code)
    if not weights_needed and weights.format in (WeightFormat.SAFETENSORS, WeightFormat.PYTORCH):
        beside = [file for file in needed if file.name in (*COMPANIONS, *code)]
        folder = fetch_files(client, repository, commit, beside, progress)
        return _without_weights(folder, weights, needed, reference, commit)
    folder = fetch_files(client, repository, commit, needed, progress)
    return inspect_folder(folder, files=weights.names, allow_pickle=allow_pickle, reference=reference, commit=commit)


def _without_weights(
    folder: Path, weights: Weights, needed: Sequence[RemoteFile], reference: Reference, commit: str
) -> ModelArtifact:
    """What lies beside weights that were not fetched, with what the Hub says of these. If they are here from before,
    they are found.
    """
    found = inspect_folder(
        folder, files=weights.names, allow_pickle=True, weights_needed=False, reference=reference, commit=commit
    )
    if found.weight_files:
        return found
    away = [file for file in needed if format_of(file.name) is weights.format and file.name not in weights.indices]
    stated = {file.name: file.sha256 for file in away if file.sha256 is not None}
    total = sum(file.size_bytes for file in away)
    return replace(found, format=weights.format, weight_bytes=total, stated=stated if len(stated) == len(away) else {})


def _needed(
    client: Client,
    repository: Repository,
    commit: str,
    remote: Mapping[str, RemoteFile],
    weights: Weights,
    code: Sequence[str],
) -> list[RemoteFile]:
    """The chosen weights with what belongs to them; an index is fetched to know its shards, and an ONNX graph to know
    where its weights are.
    """
    names = [] if weights.format is WeightFormat.GGUF else [name for name in COMPANIONS if name in remote]
    names += [*code, *weights.names]
    for index in weights.indices:
        folder = fetch_files(client, repository, commit, [remote[index]])
        names += shards_of(folder, index)
    for graph in weights.names if weights.format is WeightFormat.ONNX else ():
        folder = fetch_files(client, repository, commit, [remote[graph]])
        names += external_files(folder / graph, folder)
    absent = [name for name in names if name not in remote]
    if absent:
        raise ModelError(
            f"{repository} lacks {absent[0]}, which another of its files lists", "try another revision of it"
        )
    return [remote[name] for name in dict.fromkeys(names)]


def describe_model(
    reference: Reference,
    *,
    format: WeightFormat | None = None,  # noqa: A002 - as the setting is called
    files: Sequence[str] | None = None,
    allow_pickle: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> Architecture | None:
    """What a model is, from its config alone; of a Hub model nothing else is fetched. None where only weights say.

    Which weights `fetch_model` would take is looked up in the listing of the repository, so not in offline mode.

    Raises:
        As `fetch_model`.
    """
    if not isinstance(reference, HubReference):
        return inspect_folder(
            reference.locate(), format=format, files=files, allow_pickle=allow_pickle, reference=reference
        ).architecture
    client = connect(token=token, endpoint=endpoint)
    repository = Repository("model", reference.repo_id, reference.revision)
    if client.offline:
        folder = cached_snapshot(client, repository)[1]
    else:
        commit, remote = listing(client, repository)
        weights = choose_weights(
            remote.keys(), where=str(reference), format=format, files=files, allow_pickle=allow_pickle
        )
        if weights.format is WeightFormat.GGUF or "config.json" not in remote:
            return None
        folder = fetch_files(client, repository, commit, [remote["config.json"]])
    return architecture_of(read_json(folder / "config.json")) if (folder / "config.json").is_file() else None


def fetch_config(reference: Reference) -> Path:
    """The folder with a model's config.json, or the GGUF that holds its metadata: of the Hub nothing else is fetched.

    Raises:
        NotFoundError: there is no config.json.
        AccessError, FetchError, ModelError: as `fetch_model`.
    """
    if not isinstance(reference, HubReference):
        path = reference.locate()
        folder = path if path.is_dir() else path.parent
        if (folder / "config.json").is_file() and path.suffix != ".gguf":
            return folder
        return _only_gguf(inspect_folder(path, reference=reference))
    client = connect()
    repository = Repository("model", reference.repo_id, reference.revision)
    if client.offline:
        folder = cached_snapshot(client, repository)[1]
    else:
        commit, remote = listing(client, repository)
        if "config.json" not in remote:
            raise NotFoundError(f"{repository} has no config.json", "name a repository in the layout of transformers")
        folder = fetch_files(client, repository, commit, [remote["config.json"]])
    if not (folder / "config.json").is_file():
        raise NotFoundError(f"{repository} has no config.json here", "try without HF_HUB_OFFLINE")
    return folder


def _only_gguf(artifact: ModelArtifact) -> Path:
    if artifact.format is not WeightFormat.GGUF:
        raise NotFoundError(f"{artifact.reference} has no config.json", "name a folder in the layout of transformers")
    return artifact.weight_files[0]
