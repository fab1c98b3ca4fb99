"""A registry of images on loopback, for what a test machine's engines can't be made to do without one: pulling.

It speaks as much of the distribution API (https://distribution.github.io/distribution/spec/api/) as pulling takes, and
has one image under any name, but for ``missing/*`` and ``*/jupyterhub-launcher``. It listens at two addresses, one of
which wants credentials. The image has layers that no engine has seen before.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

USER, PASSWORD = "puller", "a password of the registry's"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Registry:
    """Where the registry is."""

    def __init__(self, client: Any, image: str, folder: Path) -> None:
        with (folder / "image.tar").open("wb") as file:
            file.writelines(client.get_image(image))
        with tarfile.open(folder / "image.tar") as archive:
            archive.extractall(folder, filter="data")
        saved = json.loads((folder / "manifest.json").read_text())[0]
        content = json.loads((folder / saved["Config"]).read_text())
        layers = [folder / name for name in saved["Layers"]]
        for number in range(4):
            layers.append(_new_layer(folder, f"new-{number}"))
            # a layer that is not compressed has the same digest in the registry as in the image's configuration
            content["rootfs"]["diff_ids"].append(_digest(layers[-1].read_bytes()))
            content["history"].append({"created_by": "the tests' registry"})
        digests = content["rootfs"]["diff_ids"]
        config = json.dumps(content).encode()
        self.blobs: dict[str, bytes | Path] = {_digest(config): config, **dict(zip(digests, layers, strict=True))}
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _descriptor("application/vnd.docker.container.image.v1+json", _digest(config), len(config)),
            "layers": [
                _descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", digest, layer.stat().st_size)
                for digest, layer in zip(digests, layers, strict=True)
            ],
        }
        self.manifest = json.dumps(manifest).encode()
        self.address = self.private_address = ""

    @contextmanager
    def running(self) -> Iterator[Registry]:
        with self._listening(private=False) as self.address, self._listening(private=True) as self.private_address:
            yield self

    @contextmanager
    def _listening(self, private: bool) -> Iterator[str]:
        handler = type("Handler", (_Handler,), {"registry": self, "private": private})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    registry: Registry
    private: bool
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.private and self.headers.get("Authorization") != _basic():
            return self._error(401, "UNAUTHORIZED", "authentication required")
        if path == "/v2/":
            return self._answer(200, b"{}")
        if path.startswith("/v2/missing/") or "/jupyterhub-launcher/" in path:
            return self._error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        if "/manifests/" in path:
            return self._answer(200, self.registry.manifest, MANIFEST)
        blob = self.registry.blobs.get(path.rpartition("/")[2])
        if blob is None:
            return self._error(404, "BLOB_UNKNOWN", "blob unknown")
        return self._answer(200, blob)

    do_HEAD = do_GET  # noqa: N815

    def _error(self, status: int, code: str, message: str) -> None:
        self._answer(status, json.dumps({"errors": [{"code": code, "message": message}]}).encode())

    def _answer(self, status: int, body: bytes | Path, kind: str = "application/json") -> None:
        size = len(body) if isinstance(body, bytes) else body.stat().st_size
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(size))
        self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
        if kind == MANIFEST and isinstance(body, bytes):
            self.send_header("Docker-Content-Digest", _digest(body))
        if status == 401:
            self.send_header("WWW-Authenticate", 'Basic realm="registry"')
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(body, bytes):
            self.wfile.write(body)
        else:
            with body.open("rb") as file:
                while chunk := file.read(1 << 20):
                    self.wfile.write(chunk)

    def log_message(self, *args: Any) -> None:
        pass


def _new_layer(folder: Path, name: str) -> Path:
    """A layer with one file of 16 MB that can't be pressed together."""
    layer, file = folder / f"{name}.tar", folder / name
    file.write_bytes(os.urandom(16 << 20))
    with tarfile.open(layer, "w") as archive:
        archive.add(file, arcname=f"opt/{name}")
    return layer


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest, "size": size}


def _basic() -> str:
    return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
