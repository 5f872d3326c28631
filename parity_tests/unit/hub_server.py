"""A Hugging Face Hub for tests: a local HTTP server that speaks the endpoints uploads and downloads use.

Repositories are kept in memory. A token says what its bearer may do: `writer` everything, any other nothing but read.
Faults are planted by path: `break_at` cuts the connection in the middle of a request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

BIG = 100_000  # bytes from which a file is uploaded apart from the commit, as large files are
API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?P<rest>.*)")
BATCH = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


@dataclass
class Hub:
    """What the server holds and what happened to it."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    commits: dict[str, int] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)  # uploaded large files, by sha256
    requests: list[str] = field(default_factory=list)
    break_at: str = ""  # cut the connection of a request whose line holds this

    def sha(self, repo: str) -> str:
        return f"{self.commits.get(repo, 0):040x}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, data: bytes | dict[str, Any] | list[Any], **headers: str) -> None:
        encoded = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(encoded)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(encoded)

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.break_at and self.hub.break_at in f"{self.command} {path}":
            self.rfile.read(min(1000, int(self.headers.get("Content-Length") or 0)))
            self.close_connection = True
            self.connection.close()
            return
        data = self.body()
        writes = self.command in ("POST", "PUT") and "validate-yaml" not in path
        if writes and (status := self.may_write()) != 200:
            self.answer(status, {"error": "no"}, X_Error_Message="no")
            return
        if path == "/api/repos/create":
            self.create(json.loads(data))
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif found := API.fullmatch(path):
            self.api(found["repo"], found["rest"], data)
        elif found := BATCH.fullmatch(path):
            self.batch(json.loads(data))
        elif path.startswith("/lfs/"):
            self.hub.blobs[path.removeprefix("/lfs/")] = data
            self.answer(200, {})
        elif found := FILE.fullmatch(path):
            self.file(found["repo"], found["name"])
        else:
            self.answer(404, {"error": f"no such endpoint {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def may_write(self) -> int:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if urlsplit(self.path).path.startswith("/lfs/"):  # such addresses are signed
            return 200
        return 200 if token == "writer" else 403 if token else 401

    def create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        exists = repo in self.hub.repositories
        if not exists:
            self.hub.repositories[repo] = {".gitattributes": b""}
            if wanted.get("private") or wanted.get("visibility") == "private":
                self.hub.private.add(repo)
        url = {"url": f"{self.hub.url}/{repo}", "name": repo, "id": "1"}
        self.answer(409 if exists else 200, url)

    def api(self, repo: str, rest: str, data: bytes) -> None:
        files = self.hub.repositories.get(repo)
        if files is None:
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        elif rest.startswith("/preupload/"):
            asked = json.loads(data)["files"]
            modes = [
                {"path": one["path"], "uploadMode": "lfs" if one["size"] > BIG else "regular", "shouldIgnore": False}
                for one in asked
            ]
            self.answer(200, {"files": modes})
        elif rest.startswith("/commit/"):
            self.commit(repo, [json.loads(line) for line in data.decode().splitlines() if line.strip()])
        elif rest.startswith("/tree/"):
            self.answer(200, [self.entry(name, content) for name, content in files.items()])
        elif rest in ("", "/revision/main", f"/revision/{self.hub.sha(repo)}"):
            siblings = [{"rfilename": name} for name in files]
            self.answer(200, {"id": repo, "sha": self.hub.sha(repo), "siblings": siblings, "private": False})
        else:
            self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")

    @staticmethod
    def entry(name: str, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": name, "size": len(content), "oid": oid}

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.hub.repositories[repo])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        self.hub.repositories[repo] = files  # all of it, or nothing
        self.hub.commits[repo] = self.hub.commits.get(repo, 0) + 1
        sha = self.hub.sha(repo)
        self.answer(200, {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for one in wanted["objects"]:
            known = one["oid"] in self.hub.blobs
            upload = {} if known else {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            objects.append({**one, **upload})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def file(self, repo: str, name: str) -> None:
        content = self.hub.repositories.get(repo, {}).get(name)
        if content is None:
            self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.answer(200, content, ETag=tag, X_Repo_Commit=self.hub.sha(repo), Access_Control_Allow_Origin="*")


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A server on a free local port while inside."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
