"""What the manager talks to, on loopback: a Hub that takes status events, mail and syslog servers."""

from __future__ import annotations

import json
import queue
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Receiver:
    """An HTTP server that keeps what it gets; ``answers`` says what it answers next, ``answer`` what else."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answers: queue.Queue[int] = queue.Queue()
        self.answer = 204
        self.known = 200
        """To the question who holds a token, after what ``knows`` has."""
        self.knows: queue.Queue[int] = queue.Queue()
        self.proxy_refuses = False
        """What is before the Hub answers with 403 to that."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def _reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer = b""
                if self.command == "GET":
                    status = receiver.known if receiver.knows.empty() else receiver.knows.get()
                    answer = json.dumps({"status": status, "message": "as JupyterHub says it"}).encode()
                    if receiver.proxy_refuses:
                        status, answer = 403, b"<h1>Forbidden</h1>"
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
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

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


@contextmanager
def silent_mail_server() -> Iterator[int]:
    """Its port; it greets whom it sees first, and then says nothing to anybody."""
    silent = threading.Event()
    over = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            if silent.is_set():
                over.wait(60)
                return
            silent.set()
            self.wfile.write(b"220 hello\r\n")
            for line in self.rfile:
                self.wfile.write(b"221 bye\r\n" if line.lower().startswith(b"quit") else b"250 fine\r\n")

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


class Wire:
    """What is between the manager and the cluster: it can be cut, or carry nothing any more."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._frozen = threading.Event()
        self.delay = 0.0
        """Seconds that everything takes, each way."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        listener = self._listener
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self._frozen.is_set():
                    time.sleep(self.delay)
                    sink.sendall(data)
        _close(source, sink)

    def freeze(self) -> None:
        """Nothing arrives any more, and nobody is told."""
        self._frozen.set()

    def cut(self) -> None:
        """All connections are gone, and no new ones are taken."""
        _close(self._listener)
        self._accepting.join()
        for pair in self._pairs:
            _close(*pair)
        self._pairs.clear()

    def mend(self) -> None:
        """As before."""
        self.cut()
        self._frozen.clear()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
