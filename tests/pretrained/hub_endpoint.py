"""A hub on 127.0.0.1: the few routes that downloads and uploads use, over folders in memory.

It answers as the hub does for plain and LFS files: revisions resolve to a commit, files carry ETag, size and commit in
their headers, uploads go through preupload, LFS batch and an ndjson commit. Requests are kept for tests to look at.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LFS_FROM = 1_000  # bytes; larger files travel as LFS objects


@dataclass
class Endpoint:
    """State of the hub: repositories (files by name), LFS objects by sha256, and what was asked."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def commit(self, repo: str) -> str:
        """The commit of a repository: it changes with its content."""
        digest = hashlib.sha1()
        for name, content in sorted(self.repos[repo].items()):
            digest.update(name.encode() + hashlib.sha256(content).digest())
        return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    """The routes."""

    hub: Endpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.route()

    def do_GET(self) -> None:
        self.route()

    def do_POST(self) -> None:
        self.route()

    def do_PUT(self) -> None:
        self.route()

    def route(self) -> None:
        self.hub.requests.append((self.command, self.path))
        path = self.path.split("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, path):
                return answer(self, body, *match.groups())
        return self.send(404, {"error": f"no route {path}"})

    def send(self, status: int, content: object, **headers: str) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def known(self, repo: str) -> bool:
        if repo in self.hub.repos:
            return True
        self.send(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return False

    def info(self, _: bytes, repo: str, __: str | None = None) -> None:
        if self.known(repo):
            files = [{"rfilename": name, "size": len(content)} for name, content in self.hub.repos[repo].items()]
            self.send(200, {"id": repo, "modelId": repo, "sha": self.hub.commit(repo), "siblings": files, "tags": []})

    def tree(self, _: bytes, repo: str, __: str) -> None:
        if self.known(repo):
            files = self.hub.repos[repo].items()
            entries = [
                {"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for n, c in files
            ]
            self.send(200, entries)

    def resolve(self, _: bytes, repo: str, __: str, name: str) -> None:
        if not self.known(repo):
            return
        content = self.hub.repos[repo].get(name)
        if content is None:
            self.send(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            return
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.send(200, content, ETag=etag, X_Repo_Commit=self.hub.commit(repo), Accept_Ranges="bytes")

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if repo in self.hub.repos:
            self.send(409, {"url": f"{self.hub.url}/{repo}", "error": "exists"})
        else:
            self.hub.repos[repo] = {}
            self.send(200, {"url": f"{self.hub.url}/{repo}", "name": repo, "private": asked.get("private", False)})

    def preupload(self, body: bytes, _: str, __: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LFS_FROM else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self.send(200, {"files": files})

    def lfs_batch(self, body: bytes, _: str) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        self.send(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.send(200, b"")

    def make_commit(self, body: bytes, repo: str, _: str) -> None:
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            if entry["key"] == "lfsFile":
                self.hub.repos[repo][value["path"]] = self.hub.objects[value["oid"]]
        commit = self.hub.commit(repo)
        self.send(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})

    def who(self, _: bytes) -> None:
        self.send(200, {"name": "user", "type": "user", "auth": {"accessToken": {"role": "write"}}})

    def accepted(self, _: bytes) -> None:
        self.send(200, {"errors": [], "warnings": []})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    (rf"/api/models/{REPO}/revision/([^/]+)", Handler.info),
    (rf"/api/models/{REPO}/tree/([^/]+)", Handler.tree),
    (rf"/api/models/{REPO}/preupload/([^/]+)", Handler.preupload),
    (rf"/api/models/{REPO}/commit/([^/]+)", Handler.make_commit),
    (rf"/api/models/{REPO}", Handler.info),
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.accepted),
    (r"/api/whoami-v2", Handler.who),
    (rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (r"/lfs/(\w+)", Handler.lfs_put),
    (rf"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
)


@contextmanager
def serve() -> Iterator[Endpoint]:
    """Serve an empty hub until the block ends."""
    hub = Endpoint()
    handler = type("BoundHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
