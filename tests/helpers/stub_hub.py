"""A stand-in for the Hugging Face Hub on loopback. It checks every request, and keeps what it was sent."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import yaml

TOKEN = "hf_verySecretTokenThatNobodyMaySee"
LARGE = (".safetensors", ".gguf", ".jsonl")
"""What the stub takes as large files, which are sent apart from the commit."""


@dataclasses.dataclass
class StubHub:
    """The state of the stub, which a test sets before and reads after."""

    url: str = ""
    user: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {
            "type": "user",
            "name": "me",
            "orgs": [{"name": "lab", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}],
            "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": "write"}},
        }
    )
    repos: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """By "models/OWNER/NAME": `private`, and `cardData` of repositories of others."""
    files: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    """What was committed, by repository and name."""
    stored: dict[str, bytes] = dataclasses.field(default_factory=dict)
    """Large files, by their SHA-256."""
    puts: list[str] = dataclasses.field(default_factory=list)
    """Every large file that was sent, by its SHA-256."""
    log: list[str] = dataclasses.field(default_factory=list)
    """Every request: method and path."""
    wrong: list[str] = dataclasses.field(default_factory=list)
    """What was wrong with requests; a test asserts that it is empty."""
    fail: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)
    """Status and message of requests whose method and path contain the key."""

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Return the status, JSON and headers of a reply."""
        self.log.append(f"{method} {path}")
        for part, (status, message) in self.fail.items():
            if part in f"{method} {path}":
                return status, {"error": message}, {"X-Error-Message": message}
        if path.startswith("/storage/"):
            if "authorization" in headers:
                self.wrong.append("the token went to the storage")
            return self._store(path.rpartition("/")[2], body)
        if headers.get("authorization") != f"Bearer {TOKEN}":
            self.wrong.append(f"{method} {path} came without the token")
            return 401, {"error": "Invalid credentials"}, {}
        kind, _, rest = path.removeprefix("/api/").partition("/")
        if (method, path) == ("GET", "/api/whoami-v2"):
            return 200, self.user, {}
        if (method, path) == ("POST", "/api/repos/create"):
            return self._create(json.loads(body))
        if (method, path) == ("POST", "/api/validate-yaml"):
            return self._validate(json.loads(body))
        if method == "POST" and path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if kind in ("models", "datasets"):
            name = "/".join(rest.split("/")[:2])
            action = rest.removeprefix(name)
            if f"{kind}/{name}" not in self.repos:
                return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
            if method == "GET" and not action:
                return 200, {"id": name, "sha": "0" * 40, **self.repos[f"{kind}/{name}"]}, {}
            if method == "POST" and action == "/preupload/main":
                return 200, {"files": [self._mode(file) for file in json.loads(body)["files"]]}, {}
            if method == "POST" and action == "/commit/main":
                return self._commit(f"{kind}/{name}", [json.loads(line) for line in body.splitlines()])
        self.wrong.append(f"{method} {path} is not known")
        return 500, {"error": "not known"}, {}

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        name = f"{asked['organization']}/{asked['name']}"
        key = f"{asked.get('type', 'model')}s/{name}"
        if asked.get("visibility") not in ("private", "public"):
            self.wrong.append("a repository was made without saying who may see it")
        if key in self.repos:
            return 409, {"error": "You already created this repo", "url": f"{self.url}/{name}"}, {}
        self.repos[key] = {"private": asked["visibility"] == "private"}
        return 200, {"url": f"{self.url}/{name}", "name": name}, {}

    def _validate(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        data = metadata(asked["content"])
        errors = [{"message": f'"{key}" is required'} for key in ("license", "tags") if not data.get(key)]
        base = data.get("base_model", "owner/name")
        if base.count("/") != 1 or base.startswith((".", "/", "~")):
            errors.append({"message": f'"base_model" {base!r} is no id'})
        return (400 if errors else 200), {"errors": errors, "warnings": []}, {}

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["path"].endswith(LARGE) else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def _batch(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        objects = []
        for each in asked["objects"]:
            upload = {"upload": {"href": f"{self.url}/storage/{each['oid']}", "header": {}}}
            objects.append(each | ({} if each["oid"] in self.stored else {"actions": upload}))
        return 200, {"transfer": "basic", "objects": objects}, {}

    def _store(self, oid: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if hashlib.sha256(body).hexdigest() != oid:
            self.wrong.append(f"{oid} was not sent whole")
        self.puts.append(oid)
        self.stored[oid] = body
        return 200, {}, {}

    def _commit(self, key: str, lines: list[dict[str, Any]]) -> tuple[int, Any, dict[str, str]]:
        files = self.files.setdefault(key, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.stored:
                    self.wrong.append(f"{value['path']} was committed and never sent")
                files[value["path"]] = self.stored.get(value["oid"], b"")
            elif line["key"] != "header":
                self.wrong.append(f"a commit has {line['key']}")
        name = key.partition("/")[2]
        return 200, {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1" * 40, "success": True}, {}


def metadata(card: str) -> dict[str, Any]:
    """The YAML at the top of a card."""
    return yaml.safe_load(card.split("---")[1])


@contextmanager
def stub_hub() -> Iterator[StubHub]:
    """A hub on a port of its own."""
    hub = StubHub()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            headers = {name.lower(): value for name, value in self.headers.items()}
            with lock:
                status, data, more = hub.answer(self.command, urlsplit(self.path).path, headers, body)
            reply = json.dumps(data).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(reply)), **more}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply)

        do_POST = do_PUT = do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
