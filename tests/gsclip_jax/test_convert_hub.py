"""Hub names: what is downloaded, from which commit, when nothing is asked of the network, and what is said without one.

A server on this machine speaks the few routes of the hub that the client uses; client and cache are the real ones.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gsclip_jax.convert import huggingface
from gsclip_jax.runtime.keys import WeightsError
from gsclip_jax.runtime.names import is_hub_name

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "clip"}',
    "merges.txt": b"#version: 0.2\n",
    "vocab.json": b"{}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "model-00001-of-00002.safetensors": b"first",
    "model-00002-of-00002.safetensors": b"second",
    "pytorch_model.bin": b"the same again",
    "flax_model.msgpack": b"not needed",
    "README.md": b"not needed",
}


@pytest.fixture
def server(monkeypatch, tmp_path):
    """(requests seen, cache directory) of a hub with one repository, owner/clip."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def answer(self, body, headers, status=200):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            if "/owner/clip" in self.path:  # the client also asks things of its own
                seen.append((self.command, self.path))
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[:4] == ["api", "models", "owner", "clip"]:
                tree = [
                    {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                    for name, body in FILES.items()
                ]
                info = {"id": "owner/clip", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]}
                body = json.dumps(tree if parts[4:5] == ["tree"] else info).encode()
                return self.answer(body, {"Content-Type": "application/json"})
            if parts[:3] == ["owner", "clip", "resolve"] and parts[4] in FILES:
                body = FILES[parts[4]]
                return self.answer(body, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT})
            return self.answer(b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}, 404)

        do_HEAD = do_GET

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{listener.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield seen, tmp_path / "cache"
    listener.shutdown()
    listener.server_close()


def test_only_what_is_needed_is_fetched_once(server):
    seen, cache = server
    folder, commit = huggingface.fetch("owner/clip", cache_dir=cache)
    assert commit == COMMIT and folder.name == COMMIT
    assert {file.name for file in folder.iterdir()} == set(FILES) - {"pytorch_model.bin", "flax_model.msgpack", "README.md"}
    assert (folder / "model-00002-of-00002.safetensors").read_bytes() == b"second"
    asked = len(seen)
    for revision in (None, "main", COMMIT):
        assert huggingface.fetch("owner/clip", revision, cache_dir=cache) == (folder, COMMIT)
    assert len(seen) == asked  # the cache answers, nothing is asked of the network


def test_an_incomplete_cache_is_completed(server):
    seen, cache = server
    folder, _ = huggingface.fetch("owner/clip", cache_dir=cache)
    (folder / "model-00002-of-00002.safetensors").unlink()
    again, _ = huggingface.fetch("owner/clip", COMMIT, cache_dir=cache)
    assert again == folder and (folder / "model-00002-of-00002.safetensors").read_bytes() == b"second"


def test_unknown_repositories_are_one_line(server):
    _, cache = server
    with pytest.raises(WeightsError, match="owner/other: cannot be fetched.*RepositoryNotFound") as info:
        huggingface.fetch("owner/other", cache_dir=cache)
    assert "\n" not in str(info.value)


def test_without_a_network_the_message_says_what_to_do(server, monkeypatch):
    _, cache = server
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(WeightsError, match="owner/clip: cannot be fetched.*give a directory") as info:
        huggingface.fetch("owner/clip", cache_dir=cache)
    assert "\n" not in str(info.value)


def test_public_names_mean_one_commit():
    assert all(len(commit) == 40 and int(commit, 16) for commit in huggingface.PINNED.values())
    assert is_hub_name("openai/clip-vit-large-patch14-336")
    assert not any(map(is_hub_name, ("mini", "/a/b", "./a", "a/b/c", "weights.pt", "tests/__init__.py")))


def test_repositories_without_weights_are_refused():
    with pytest.raises(WeightsError, match="no config.json with"):
        huggingface._needed({"config.json", "tf_model.h5"}, "owner/clip")
    assert huggingface._needed({"config.json", "pytorch_model.bin", "tf_model.h5", "merges.txt"}, "owner/clip") == [
        "config.json",
        "merges.txt",
        "pytorch_model.bin",
    ]


@pytest.mark.parametrize("kind", ["alone", "timm", "both"])
def test_repositories_of_open_clip(server, monkeypatch, kind):
    """open_clip's files where there is no transformers model; with one, that one."""
    _, cache = server
    ours = {"open_clip_config.json": b"{}", "open_clip_model.safetensors": b"these", "open_clip_pytorch_model.bin": b"again"}
    for name, body in ours.items():
        monkeypatch.setitem(FILES, name, body)
    if kind == "timm":
        monkeypatch.setitem(FILES, "config.json", b'{"architecture": "vit_base_patch16_clip_224"}')
        monkeypatch.setitem(FILES, "model.safetensors", b"of the picture tower alone")
    elif kind == "alone":
        for name in ("config.json", "model.safetensors.index.json", "pytorch_model.bin"):
            monkeypatch.delitem(FILES, name)
    folder, _ = huggingface.fetch("owner/clip", cache_dir=cache)
    fetched = {file.name for file in folder.iterdir()}
    if kind == "both":
        assert "model-00001-of-00002.safetensors" in fetched and not fetched & set(ours)
    else:
        assert fetched - {"config.json"} == {"open_clip_config.json", "open_clip_model.safetensors", "merges.txt", "vocab.json"}
    assert huggingface.fetch("owner/clip", COMMIT, cache_dir=cache) == (folder, COMMIT)
