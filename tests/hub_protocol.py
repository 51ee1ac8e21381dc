"""How the local Hub server answers: the requests that `huggingface_hub` and `datasets` make, and nothing else."""

import hashlib
import json
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hub_content import Fault, Refused, Repository, RepoType, Request, ServedFile
from hub_uploads import Uploads, receive

if TYPE_CHECKING:
    from hub_server import HubServer

JSON = {"Content-Type": "application/json"}
_ROUTES = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+(?:/(?!revision/|tree/|paths-info/)[^/]+)?)"
    r"(?:/(?P<what>revision|tree|paths-info)/(?P<revision>[^/]+)(?:/(?P<inside>.+))?)?"
)
_RESOLVE = re.compile(r"/(?P<datasets>datasets/)?(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


class _Handler(BaseHTTPRequestHandler):
    hub: "HubServer"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    @property
    def token(self) -> str | None:
        header = self.headers.get("authorization")
        return header.removeprefix("Bearer ") if header else None

    def note(self, name: str | None = None) -> None:
        request = Request(self.command, self.path, self.headers.get("authorization"), self.headers.get("range"), name)
        self.hub.record(request)
        time.sleep(self.hub.delay_s)

    def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_file(self, name: str, file: ServedFile, headers: Mapping[str, str]) -> None:
        """The bytes of a file, or of the range that was asked for, with whatever goes wrong on the way."""
        fault = self.hub.take_fault(name) if self.command == "GET" else None
        if fault and fault.kind == "unavailable":
            self.answer(503, b"try later", {})
            return
        if fault and fault.kind in ("whole", "shifted", "shorter", "few", "packed", "expired"):
            self.send_oddly(name, file.content, fault)
            return
        data, status = file.content, 200
        headers = {"Accept-Ranges": "bytes", **headers}
        if fault and fault.kind == "corrupt":
            data = bytes([data[0] ^ 1]) + data[1:]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range") or "")
        if wanted and not (fault and fault.kind == "ignore_range"):
            start = int(wanted[1])
            data = data[start : int(wanted[2]) + 1 if wanted[2] else None]
            headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{len(file.content)}"
            status = 206
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.kind in ("close", "reset", "ignore_range"):
            data = data[: fault.after_bytes]
        self.hub.count(name, len(data))
        self.wfile.write(data)
        if fault and fault.kind != "corrupt":
            self.hang_up(reset=fault.kind == "reset")

    def send_oddly(self, name: str, content: bytes, fault: Fault) -> None:
        """What a server does that does not know ranges, has another file, or is a proxy of its own mind."""
        if fault.kind == "shorter":
            content = content[: fault.after_bytes]
        start, last = map(
            int, (self.headers.get("range") or f"bytes=0-{len(content) - 1}").removeprefix("bytes=").split("-")
        )
        data = content if fault.kind == "whole" else content[start : last + 1]
        if fault.kind == "expired" or not data:
            self.answer(403 if data else 416, b"", {})
            return
        shown = start + (fault.kind == "shifted")
        self.send_response(200 if fault.kind == "whole" else 206)
        self.send_header("Content-Range", f"bytes {shown}-{shown + len(data) - 1}/{len(content)}")
        if fault.kind == "packed":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Transfer-Encoding", "chunked")  # so that its end is no sign of how much was meant
        self.end_headers()
        data = data[: fault.after_bytes] if fault.kind == "few" else data
        for begin in range(0, len(data), 65_536):
            piece = data[begin : begin + 65_536]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.hub.count(name, len(piece))
        self.wfile.write(b"0\r\n\r\n")

    def hang_up(self, *, reset: bool) -> None:
        self.wfile.flush()
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


class StorageHandler(_Handler):
    """Where LFS files lie: addressed by their SHA-256, without a login."""

    def do_GET(self) -> None:
        name, sha256 = (parse_qs(urlsplit(self.path).query)[key][0] for key in ("name", "sha256"))
        self.note(name)
        files = (
            file
            for repository in self.hub.repositories.values()
            for commit in repository.commits.values()
            for file in commit.values()
        )
        self.send_file(name, next(file for file in files if file.lfs and file.sha256 == sha256), {})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        self.note()
        receive(self)


class HubHandler(_Handler):
    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        uploads = Uploads(self, b"")
        if match := _RESOLVE.fullmatch(path):
            self.refusing(lambda: self.resolve("dataset" if match["datasets"] else "model", match))
            return
        self.note()
        if uploads.knows(path):
            self.refusing(uploads.answer)
        elif found := _ROUTES.fullmatch(path):
            self.refusing(lambda: self.api(found))
        else:
            self.refusing(self.nothing)

    def nothing(self) -> None:
        raise Refused(404, None, "Not Found")

    def refusing(self, answer: Callable[[], None]) -> None:
        """Answers, or says no as the Hub does."""
        try:
            if self.hub.refuses_with is not None:
                raise Refused(self.hub.refuses_with, None, "refused")
            answer()
        except Refused as refused:
            headers = {"X-Error-Message": refused.message} | ({"X-Error-Code": refused.code} if refused.code else {})
            self.answer(refused.status, json.dumps({"error": refused.message} | refused.more).encode(), headers)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        uploads = Uploads(self, body)
        if self.path == "/oauth/token":
            self.note()
            self.renew(parse_qs(body.decode())["refresh_token"][0])
        elif uploads.knows(self.path):
            self.note()
            self.refusing(uploads.answer)
        else:
            self.form = parse_qs(body.decode())
            self.do_GET()

    def renew(self, refresh_token: str) -> None:
        """A login through the browser that runs out is exchanged for another one."""
        token = f"renewed-by-{refresh_token}"
        self.hub.tokens.add(token)
        self.answer(200, json.dumps({"access_token": token, "expires_in": 10**6}).encode(), JSON)

    def repository(self, kind: RepoType, repo_id: str) -> Repository:
        """Missing repositories and those that are not shown look alike to a stranger."""
        if self.token is not None and self.token not in self.hub.tokens:
            raise Refused(401, None, "Invalid credentials in Authorization header")
        found = self.hub.repositories.get((kind, repo_id))
        if found is None or (found.private and self.token not in (found.granted or set())):
            if self.token is None:
                raise Refused(401, None, "Invalid username or password.")
            raise Refused(404, "RepoNotFound", "Repository not found")
        return found

    def commit(self, repository: Repository, revision: str) -> str:
        commit = repository.find(unquote(revision))
        if commit is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {unquote(revision)}")
        return commit

    def api(self, match: re.Match[str]) -> None:
        repository = self.repository("dataset" if match["kind"] == "datasets" else "model", unquote(match["repo"]))
        commit = self.commit(repository, match["revision"] or "main")
        files = repository.commits[commit]
        if match["what"] == "tree":
            self.tree(files, unquote(match["inside"] or ""))
            return
        if match["what"] == "paths-info":
            wanted = self.form.get("paths", [])
            found = [entry for name in wanted for entry in _entries(files, "", recursive=True) if entry["path"] == name]
            self.answer(200, json.dumps(found).encode(), JSON)
            return
        info = {
            "id": repository.repo_id,
            "sha": commit,
            "private": repository.private,
            "gated": "manual" if repository.granted is not None and not repository.private else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": name} for name in files],
        }
        self.answer(200, json.dumps(info).encode(), JSON)

    def tree(self, files: Mapping[str, ServedFile], inside: str) -> None:
        query = parse_qs(urlsplit(self.path).query)
        recursive = query.get("recursive", ["false"])[0].lower() == "true"
        entries = list(_entries(files, inside, recursive=recursive))
        if inside and not entries:
            raise Refused(404, "EntryNotFound", f"{inside} does not exist")
        start = int(query.get("cursor", ["0"])[0])
        end = start + self.hub.page_size
        headers = dict(JSON)
        if end < len(entries):
            page = f"{self.hub.url}{urlsplit(self.path).path}?recursive={recursive}&cursor={end}"
            headers["Link"] = f'<{page}>; rel="next"'
        self.answer(200, json.dumps(entries[start:end]).encode(), headers)

    def resolve(self, kind: RepoType, match: re.Match[str]) -> None:
        name = unquote(match["name"])
        repository = self.hub.repositories.get((kind, unquote(match["repo"])))
        found = (repository.commits.get(repository.find(unquote(match["revision"])) or "") or {}) if repository else {}
        lfs = name in found and found[name].lfs
        self.note(None if lfs else name)
        repository = self.repository(kind, unquote(match["repo"]))
        commit = self.commit(repository, match["revision"])
        if repository.granted is not None and self.token not in repository.granted:
            status = 401 if self.token is None else 403
            message = f"Access to {kind} {repository.repo_id} is restricted"
            raise Refused(status, "GatedRepo", message)
        file = repository.commits[commit].get(name)
        if file is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"'}
        if file.lfs:
            location = f"{self.hub.storage_url}/blob?name={quote(name)}&sha256={file.sha256}"
            linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
            self.answer(302, b"", {"Location": location, **headers, **linked})
        else:
            self.send_file(name, file, headers)


def _entries(files: Mapping[str, ServedFile], inside: str, *, recursive: bool) -> Iterator[dict[str, Any]]:
    prefix = f"{inside}/" if inside else ""
    folders: set[str] = set()
    for name, file in sorted(files.items()):
        if not name.startswith(prefix):
            continue
        parts = name.removeprefix(prefix).split("/")
        above = [prefix + "/".join(parts[:depth]) for depth in range(1, len(parts))]
        for folder in above if recursive else above[:1]:
            if folder not in folders:
                folders.add(folder)
                yield {"type": "directory", "path": folder, "oid": hashlib.sha1(folder.encode()).hexdigest(), "size": 0}
        if recursive or len(parts) == 1:
            entry: dict[str, Any] = {"type": "file", "path": name, "oid": file.oid, "size": len(file.content)}
            if file.lfs:
                entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
            yield entry
