"""A Hugging Face hub on this machine: the routes that its client asks for to download, make repositories and commit."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40
TOKEN = "hf_of_the_tests"


@contextlib.contextmanager
def hub(monkeypatch, cache):
    """Repositories of the hub, name -> {file: bytes}; the real client talks to it and keeps what it downloads in `cache`."""
    from huggingface_hub import constants

    repositories: dict[str, dict[str, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def answer(self, body, status=200, **headers):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            parts = self.path.split("?")[0].strip("/").split("/")
            name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            files = repositories.get(name)
            if files is None:
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            if parts[0] == "api":
                tree = [{"type": "file", "path": path, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                        for path, body in files.items()]  # fmt: skip
                info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
                return self.answer(tree if "tree" in parts else info)
            path = "/".join(parts[4:])
            if path not in files:
                return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            return self.answer(files[path], ETag=f'"{hashlib.sha256(files[path]).hexdigest()}"', X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

        def do_POST(self):
            given = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self.answer({"error": "Invalid credentials"}, 401)
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[1:] == ["repos", "create"]:
                about = json.loads(given)
                name = f"{about['organization']}/{about['name']}" if about.get("organization") else f"tester/{about['name']}"
                repositories.setdefault(name, {})
                return self.answer({"url": f"{address}/{name}"})
            if parts[1:] == ["validate-yaml"]:
                return self.answer({"errors": [], "warnings": []})
            name = "/".join(parts[2:4])
            files = repositories[name]
            if parts[4] == "preupload":
                paths = [one["path"] for one in json.loads(given)["files"]]
                return self.answer({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})
            for line in filter(None, given.splitlines()):
                row = json.loads(line)
                if row["key"] == "file":
                    files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                elif row["key"] == "deletedFile":
                    del files[row["value"]["path"]]
            return self.answer({"commitUrl": f"{address}/{name}/commit/{COMMIT}", "commitOid": COMMIT, "pullRequestUrl": None})

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{listener.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        yield repositories
    finally:
        listener.shutdown()
        listener.server_close()
