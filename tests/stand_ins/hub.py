"""A hub on a free port that speaks the protocols of Hugging Face, ModelScope, Ollama and a package index.

It is as badly behaved as a test asks: it drops connections, corrupts files, ignores ranges, refuses and stalls.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

REPO = "maker/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LICENSE = b"Apache License 2.0\n\nthe rest of it\n"


@dataclass
class Hub:
    """Serves `files` (path to content) as the repository `maker/tiny`; `with Hub(files) as hub: hub.url`."""

    files: dict[str, bytes]
    drops: list[int] = field(default_factory=list)
    """Numbers of bytes: each of the next file answers breaks off after the next number."""
    refusals: list[int] = field(default_factory=list)
    """The error statuses of the next requests for files and searches of Hugging Face, one for each request."""
    corrupt: bool = False
    ignore_ranges: bool = False
    ignore_if_range: bool = False
    """Whether the hub sends the rest of a file even if the file has changed."""
    listed_sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that the list of files states instead of the real ones."""
    without_tags: bool = False
    without_digests: bool = False
    stall_after: int | None = None
    """Number of bytes after which a file answer stalls until the hub closes."""
    wheels: dict[str, bytes] = field(default_factory=dict)
    lying_index: bool = False
    index_status: int = 200
    """The status of the answers of the package index."""
    ranges: list[str | None] = field(default_factory=list)
    """The Range header of every download of a file so far: of requests for a file to its end."""
    looks: list[str] = field(default_factory=list)
    """The Range header of every request for a part of a file so far. The hub answers these without any fault."""
    requests: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)

    def __enter__(self) -> Hub:
        self.closing, self.stalled = threading.Event(), threading.Event()
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    served: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), {key: values[0] for key, values in parse_qs(address.query).items()}
        self.served.requests.append((self.path, dict(self.headers.items())))
        for answer in (self._huggingface, self._modelscope, self._ollama, self._index):
            if answer(path, query):
                return
        self._json({"error": "Repository Not Found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        hit = {"Path": "maker", "Name": "tiny", "Downloads": 7}
        models = [hit] if body["Name"] in REPO else []
        self._json({"Code": 200, "Data": {"Model": {"Models": models, "TotalCount": len(models)}}})

    def _huggingface(self, path: str, query: Mapping[str, str]) -> bool:
        if path == "/api/models" and self.served.refusals:
            self._json({}, self.served.refusals.pop(0))
        elif path == "/api/models":
            hit = {"id": REPO, "modelId": REPO, "downloads": 7, "pipeline_tag": "text-generation", "tags": []}
            self._json([hit] if query["search"] in REPO else [])
        elif path in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/v2"):
            siblings = [
                {"rfilename": name, "size": self.served.listed_sizes.get(name, len(data))}
                | (
                    {}
                    if name.endswith(".json") or self.served.without_digests or self.served.listed_sizes
                    else {"lfs": _lfs(data), "blobId": "x"}
                )
                for name, data in self.served.files.items()
            ]
            self._json({"id": REPO, "sha": COMMIT, "siblings": siblings, "tags": ["gguf", "license:apache-2.0"]})
        elif path.startswith(f"/api/models/{REPO}/revision/"):
            self._json({"error": "Revision Not Found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
            self._file(self.served.files[path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")])
        else:
            return False
        return True

    def _modelscope(self, path: str, query: Mapping[str, str]) -> bool:
        base = f"/api/v1/models/{REPO}"
        if path == f"{base}/repo/files":
            files = [
                {"Path": name, "Name": name, "Type": "blob", "Size": len(data), "Sha256": sha256(data)}
                for name, data in self.served.files.items()
            ]
            files.append({"Path": "folder", "Name": "folder", "Type": "tree", "Size": 0})
            self._json({"Code": 200, "Success": True, "Data": {"Files": files}})
        elif path == base:
            self._json({"Code": 200, "Data": {"Path": "maker", "Name": "tiny", "License": "mit"}})
        elif path == f"{base}/repo":
            self._file(self.served.files[query["FilePath"]])
        else:
            return False
        return True

    def _ollama(self, path: str, query: Mapping[str, str]) -> bool:
        blobs = {f"sha256:{sha256(data)}": data for data in self.served.files.values()}
        digest = path.rpartition("/")[2]
        if path in ("/v2/library/tiny/manifests/latest", "/v2/maker/tiny/manifests/135m"):
            layers = [_layer("template", b""), *(_layer(_kind(name), data) for name, data in self.served.files.items())]
            self._json({"schemaVersion": 2, "config": {}, "layers": [*layers, _layer("license", LICENSE)]})
        elif "/blobs/" in path and digest == f"sha256:{sha256(LICENSE)}":
            self._send(LICENSE)
        elif "/blobs/" in path and digest in blobs:
            self._file(blobs[digest])
        else:
            return False
        return True

    def _index(self, path: str, query: Mapping[str, str]) -> bool:
        names = [name for name in self.served.wheels if path == f"/simple/{name.split('-')[0].replace('_', '-')}/"]
        if path.startswith("/simple/") and self.served.index_status != 200:
            self._json({}, self.served.index_status)
        elif names:
            data = self.served.wheels[names[0]]
            digest = "0" * 64 if self.served.lying_index else sha256(data)
            page = f'<!DOCTYPE html><a href="/wheels/{names[0]}#sha256={digest}">{names[0]}</a>'
            self._send(page.encode(), "text/html")
        elif path.startswith("/wheels/"):
            self._file(self.served.wheels[path.removeprefix("/wheels/")])
        else:
            return False
        return True

    def _json(self, body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self._send(json.dumps(body).encode(), "application/json", status, headers)

    def _send(
        self, body: bytes, kind: str = "text/plain", status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, data: bytes) -> None:
        hub = self.served
        asked = self.headers.get("Range")
        if asked and not asked.endswith("-") and not hub.ignore_ranges:
            self._part(data, asked)
            return
        hub.ranges.append(asked)
        if hub.refusals:
            self._json({}, hub.refusals.pop(0))
            return
        tag, begin = f'"{sha256(data)[:16]}"', 0
        same = hub.ignore_if_range or self.headers.get("If-Range", tag) == tag
        if asked and not hub.ignore_ranges and same:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begin >= len(data):
                self._json({}, 416, {"Content-Range": f"bytes */{len(data)}"})
                return
        body = bytes([data[0], *data[1:-1], data[-1] ^ 1]) if hub.corrupt else data
        self.send_response(206 if begin else 200)
        if not hub.without_tags:
            self.send_header("ETag", tag)
        self.send_header("Content-Length", str(len(data) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if hub.drops:
            body = body[: begin + hub.drops.pop(0)]
        if hub.stall_after is not None:
            self.wfile.write(body[begin : begin + hub.stall_after])
            self.wfile.flush()
            hub.stalled.set()
            hub.closing.wait()
            return
        with suppress(ConnectionError):  # the client may have hung up: that is its right
            self.wfile.write(body[begin:])

    def _part(self, data: bytes, asked: str) -> None:
        self.served.looks.append(asked)
        begin, end = (int(number) for number in asked.removeprefix("bytes=").split("-"))
        body = data[begin : end + 1]
        place = f"bytes {begin}-{begin + len(body) - 1}/{len(data)}"
        self._send(body, "application/octet-stream", 206, {"Content-Range": place})


def _kind(name: str) -> str:
    """Return the kind of the layer that a file is in a registry."""
    return "projector" if "mmproj" in name else "adapter" if "lora" in name else "model"


def _layer(kind: str, data: bytes) -> dict[str, object]:
    return {
        "mediaType": f"application/vnd.ollama.image.{kind}",
        "digest": f"sha256:{sha256(data)}",
        "size": len(data),
    }


def _lfs(data: bytes) -> dict[str, object]:
    return {"sha256": sha256(data), "size": len(data), "pointerSize": 130}


def wheel(members: Mapping[str, bytes], name: str = "tiny_weights", record: Mapping[str, bytes] | None = None) -> bytes:
    """Return a wheel with these members; `record` has contents whose digests RECORD states instead of the members'."""
    home = f"{name}-1.0.dist-info"
    papers = {
        f"{home}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense: MIT\n".encode(),
        f"{home}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    for path, data in (dict(members) | papers | dict(record or {})).items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(data)}")
    rows.append(f"{home}/RECORD,,")
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path, data in (dict(members) | papers | {f"{home}/RECORD": "\n".join(rows).encode()}).items():
            archive.writestr(path, data)
    return out.getvalue()
