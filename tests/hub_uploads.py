"""How the local Hub server takes what is pushed to it: repositories, large files and commits, as huggingface_hub and
hf_xet ask.
"""

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import yaml

from hub_content import LFS_SUFFIXES, Refused, Repository, ServedFile
from hub_xet import stored_by_xet

if TYPE_CHECKING:
    from hub_protocol import HubHandler, StorageHandler

JSON = {"Content-Type": "application/json"}
_ONE = re.compile(
    r"/api/models/(?P<repo>[^/]+/[^/]+)/(?P<what>preupload|commit|xet-write-token)/main"
    r"|/(?P<lfs>[^/]+/[^/]+)\.git/info/lfs/objects/(?P<step>batch|verify|complete)"
)
_TOGETHER = ("/api/repos/create", "/api/validate-yaml")


class Uploads:
    """Answers one request of a push."""

    def __init__(self, handler: "HubHandler", body: bytes) -> None:
        self.handler, self.hub, self.body = handler, handler.hub, body

    def knows(self, path: str) -> bool:
        return path in _TOGETHER or _ONE.fullmatch(path) is not None

    def answer(self) -> None:
        path = self.handler.path
        if path == "/api/repos/create":
            self.step("create", self.create)
        elif path == "/api/validate-yaml":
            self.step("yaml", self.validate)
        elif match := _ONE.fullmatch(path):
            what, repo_id = match["what"] or match["step"], match["repo"] or match["lfs"]
            # The address of a completion is a secret itself: it is asked for without a login.
            signed = self.hub.repositories["model", repo_id] if what == "complete" else None
            repository = signed or self.written(repo_id)
            steps: dict[str, Callable[[Repository], Any]] = {
                "preupload": self.preupload,
                "commit": self.commit,
                "xet-write-token": self.xet_token,
                "batch": self.batch,
                "verify": self.verify,
                "complete": self.complete,
            }
            self.step(what, lambda: steps[what](repository))

    def step(self, name: str, made: Callable[[], Any]) -> None:
        """Does what was asked for, and answers it, with whatever goes wrong before or after."""
        fault = self.hub.take_fault(name)
        if fault and fault.kind in ("unavailable", "limited"):
            raise Refused(503 if fault.kind == "unavailable" else 429, None, "try later")
        document = made()
        if fault and fault.kind == "lost":
            self.handler.hang_up(reset=True)
            return
        headers = document.pop("headers", {}) if isinstance(document, dict) else {}
        self.handler.answer(200, json.dumps(document).encode(), JSON | headers)

    def document(self) -> Any:
        return json.loads(self.body)

    def written(self, repo_id: str) -> Repository:
        """The repository, for someone who may write to it."""
        repository = self.handler.repository("model", repo_id)
        if self.handler.token not in self.hub.writers:
            raise Refused(403, None, "Forbidden: you must use a write token to upload to a repository.")
        return repository

    def create(self) -> Mapping[str, Any]:
        asked, token = self.document(), self.handler.token
        repo_id = f"{asked['organization']}/{asked['name']}"
        if token not in self.hub.tokens:
            raise Refused(401, None, "Invalid credentials in Authorization header")
        if token not in self.hub.writers:
            raise Refused(403, None, f'You don\'t have the rights to create a model under the namespace "{repo_id}"')
        if ("model", repo_id) in self.hub.repositories:
            raise Refused(409, None, "You already created this model repo", url=f"{self.hub.url}/{repo_id}")
        private = asked.get("visibility") == "private"
        repository = Repository(repo_id, "model", private=private, granted={token} if private and token else None)
        repository.change({".gitattributes": ServedFile(b"*.safetensors filter=lfs\n", lfs=False)}, "initial commit")
        repository.messages.clear()
        self.hub.repositories["model", repo_id] = repository
        return {"url": f"{self.hub.url}/{repo_id}"}

    def validate(self) -> Mapping[str, Any]:
        content = self.document()["content"]
        if content.startswith("---\n"):
            try:
                yaml.safe_load(content.split("---\n", 2)[1])
            except yaml.YAMLError:
                raise Refused(400, None, "Invalid metadata in README.md: not YAML") from None
        return {"errors": [], "warnings": []}

    def preupload(self, repository: Repository) -> Mapping[str, Any]:
        there = repository.commits[repository.refs["main"]]
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if "." + file["path"].rpartition(".")[2] in LFS_SUFFIXES else "regular",
                    "shouldIgnore": file["path"] in repository.ignored,
                    "oid": there[file["path"]].etag if file["path"] in there else None,
                }
                for file in self.document()["files"]
                if base64.b64decode(file["sample"]) or not file["size"]
            ]
        }

    def batch(self, repository: Repository) -> Mapping[str, Any]:
        asked = self.document()
        assert asked["operation"] == "upload"
        transfer = "xet" if self.hub.xet and "xet" in asked["transfers"] else "basic"
        return {"transfer": transfer, "objects": [self.instruction(repository, one) for one in asked["objects"]]}

    def instruction(self, repository: Repository, one: Mapping[str, Any]) -> Mapping[str, Any]:
        oid, size = one["oid"], one["size"]
        if oid in self.hub.blobs:
            return {"oid": oid, "size": size}
        lfs = f"{self.hub.url}/{repository.repo_id}.git/info/lfs/objects"
        upload: dict[str, Any] = {"href": f"{self.hub.storage_url}/put?oid={oid}&part=1"}
        if part_bytes := self.hub.part_bytes:
            parts = range(1, -(-size // part_bytes) + 1)
            header = {f"{part:05d}": f"{self.hub.storage_url}/put?oid={oid}&part={part}" for part in parts}
            upload = {"href": f"{lfs}/complete", "header": {"chunk_size": str(part_bytes), **header}}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": {"href": f"{lfs}/verify"}}}

    def complete(self, _: Repository) -> Mapping[str, Any]:
        asked = self.document()
        data = b"".join(self.hub.parts[asked["oid"], part["partNumber"]] for part in asked["parts"])
        keep(self.hub.blobs, asked["oid"], data)
        return {}

    def verify(self, _: Repository) -> Mapping[str, Any]:
        asked = self.document()
        if len(self.hub.blobs.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, None, "The file is not there")
        return {}

    def xet_token(self, _: Repository) -> Mapping[str, Any]:
        if self.hub.xet is None:
            raise Refused(404, None, "Not Found")
        expires = int(time.time()) + 3600
        told = {"casUrl": f"local://{self.hub.xet}", "accessToken": "of-the-storage", "exp": expires}
        headers = ("X-Xet-Cas-Url", "X-Xet-Access-Token", "X-Xet-Token-Expiration")
        return {**told, "headers": dict(zip(headers, map(str, told.values()), strict=True))}

    def commit(self, repository: Repository) -> Mapping[str, Any]:
        header, *operations = map(json.loads, self.body.splitlines())
        files: dict[str, ServedFile] = {}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = ServedFile(base64.b64decode(value["content"]), lfs=False)
            else:
                assert operation["key"] == "lfsFile"
                files[value["path"]] = ServedFile(self.blob(value["oid"]), lfs=True)
        commit = repository.change(files, header["value"]["summary"])
        return {"commitUrl": f"{self.hub.url}/{repository.repo_id}/commit/{commit}", "commitOid": commit}

    def blob(self, oid: str) -> bytes:
        if oid not in self.hub.blobs and self.hub.xet:
            keep(self.hub.blobs, oid, stored_by_xet(self.hub.xet, oid))
        if oid not in self.hub.blobs:
            raise Refused(400, None, f"LFS pointer pointed to a file that does not exist: {oid}")
        return self.hub.blobs[oid]


def keep(blobs: dict[str, bytes], oid: str, data: bytes) -> None:
    assert hashlib.sha256(data).hexdigest() == oid, "the storage takes nothing that is not what it is called"
    blobs[oid] = data


def receive(handler: "StorageHandler") -> None:
    """Takes the bytes of a large file, or of a part of one; no one asks who sends them, for the address is secret."""
    query = parse_qs(urlsplit(handler.path).query)
    oid, part, hub = query["oid"][0], int(query["part"][0]), handler.hub
    assert handler.headers.get("authorization") is None, "a login goes to the Hub alone"
    fault = hub.take_fault(oid) or hub.take_fault("put")
    size = int(handler.headers["content-length"])
    data = handler.rfile.read(fault.after_bytes if fault else size)
    hub.received[oid] += len(data)
    if fault and fault.kind == "unavailable":
        handler.close_connection = True
        handler.answer(503, b"try later", {})
        return
    if fault:
        if fault.kind == "stall":
            hub.stalled.set()
            hub.released.wait(60)
        handler.hang_up(reset=True)
        return
    if hub.part_bytes:
        hub.parts[oid, part] = data
    else:
        keep(hub.blobs, oid, data)
    handler.answer(200, b"", {"ETag": f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'})
