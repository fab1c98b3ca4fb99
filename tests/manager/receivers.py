"""What the manager talks to, on loopback: a Hub that takes status events, mail and syslog servers."""

from __future__ import annotations

import json
import queue
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """An HTTP server that keeps what it gets; ``answers`` says what it answers next, ``answer`` what else."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answers: queue.Queue[int] = queue.Queue()
        self.answer = 204
        self.known = 200
        """To the question who holds a token."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def _reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.command == "GET":
                    status = receiver.known
                else:
                    status = receiver.answer if receiver.answers.empty() else receiver.answers.get()
                receiver.requests.append(
                    {
                        "method": self.command,
                        "path": self.path,
                        "headers": dict(self.headers),
                        "body": json.loads(body) if body else None,
                        "status": status,
                    }
                )
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET = _reply  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[Receiver]:
        thread = threading.Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def posted(self) -> list[dict[str, Any]]:
        """The bodies that it took, in order."""
        return [r["body"] for r in self.requests if r["method"] == "POST" and r["status"] < 400]

    def env(self) -> dict[str, Any]:
        """The environment of a service whose Hub this is."""
        return {
            "JUPYTERHUB_API_URL": f"{self.url}/hub/api",
            "JUPYTERHUB_STATUS_URL": "users/progress/status/jo/lab",
            "JUPYTERHUB_API_TOKEN": "secret-of-the-server",
            "JUPYTERHUB_USER_ID": 17,
        }


@contextmanager
def syslog(kind: type[socketserver.BaseServer]) -> Iterator[tuple[int, queue.Queue[str]]]:
    """A syslog server: its port, and the messages that come."""
    messages: queue.Queue[str] = queue.Queue()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if isinstance(self.request, tuple):
                messages.put(self.request[0].decode())
                return
            with self.request.makefile("rb") as lines:
                for line in lines:
                    messages.put(line.decode())

    server = kind(("127.0.0.1", 0), Handler)  # type: ignore[call-arg]
    server.daemon_threads = True  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], messages  # type: ignore[misc]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
