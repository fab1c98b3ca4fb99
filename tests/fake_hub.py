"""A JupyterHub that does what it is told, on a real socket: the REST API as far as the launcher uses it.

It stands in only where the real one can't be made to do something at the right moment, or a thousand times a minute.
What it does wrong on purpose has a name in `Misbehaviour`; each is something that JupyterHub was seen to do.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from jhlauncher.signing import Signer, derive_key

SERVICE_TOKEN = "service-token-of-the-launcher"
PLATFORM_TOKEN = "token-of-a-platform"


class Misbehaviour(Enum):
    """What the Hub was seen to do."""

    CREATED_THOUGH_NOT_READY = auto()  # 201 after a failed start, while the next one is still pending
    ERROR_WHILE_PENDING = auto()  # the process died: 500, and the start goes on waiting for it
    LOSES_START_ANSWER = auto()  # the connection breaks after the start was accepted
    BREAKS_STREAMS = auto()  # each progress stream is cut after every new event
    IGNORES_OPTIONS = auto()  # the spawner has no mixin
    SLOW_TO_STOP = auto()  # 202 on DELETE, and the server takes a while
    GOES_ON_AFTER_CANCEL = auto()  # 500 on DELETE of a start that does not end at once, which then goes on
    REFUSES_TOKENS = auto()  # 400 when a token is to be minted


@dataclass
class FakeServer:
    """One server. Tests let its start go on with `emit`, `finish` and `fail`."""

    name: str
    user: str
    user_options: dict[str, Any] = field(default_factory=dict)
    pending: str | None = None
    ready: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)
    proof: dict[str, Any] = field(default_factory=dict)
    """What else its progress says of a server that is up."""

    @property
    def active(self) -> bool:
        return self.ready or self.pending is not None

    def is_final(self, event: Any) -> bool:
        return isinstance(event, dict) and bool(event.keys() & {"ready", "failed"})

    def emit(self, progress: int, message: str, **more: Any) -> None:
        self.events.append({"progress": progress, "message": message, **more})
        self.changed.set()
        self.changed = asyncio.Event()

    def finish(self) -> None:
        self.pending, self.ready = None, True
        options = self.user_options.get("launcher", {})
        if options.get("applied"):
            options["up"] = Signer(derive_key(SERVICE_TOKEN)).mark(options["id"], self.user, self.name)
            urls = {"url": self.model()["url"], "full_url": None}
            self.emit(99, "The server is up", phase="waiting", up={"mark": options["up"], **urls} | self.proof)
        self.emit(100, "Server ready", ready=True)
        self.done.set()

    def fail(self, message: str = "Spawn failed: it would not start") -> None:
        self.pending, self.ready = None, False
        self.emit(100, message, failed=True)
        self.done.set()

    def model(self) -> dict[str, Any]:
        path = f"/user/{self.user}/" + (f"{self.name}/" if self.name else "")
        return {
            "name": self.name,
            "pending": self.pending,
            "ready": self.ready,
            "started": "2026-01-01T00:00:00Z",
            "last_activity": "2026-01-01T00:00:00Z",
            "url": path,
            "full_url": None,
            "progress_url": f"/hub/api/users/{self.user}/server/progress",
            "user_options": self.user_options,
            "state": {"pod_name": f"jupyter-{self.user}"},
        }


class FakeHub:
    """Users, servers and tokens of a Hub, and a count of what was asked of it."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, Any]] = {}
        self.groups: set[str] = set()
        self.servers: dict[tuple[str, str], FakeServer] = {}
        self.tokens: dict[tuple[str, str], dict[str, Any]] = {}
        self.identities: dict[str, dict[str, Any]] = {}
        self.misbehaviours: set[Misbehaviour] = set()
        self.throttle: list[float | None] = []
        """Retry-After of the 429s that the next starts get; None: without the header."""
        self.codes: dict[str, str] = {}
        """Of people who have logged in, with the token that each is good for, once."""
        self.hold_codes = asyncio.Event()
        """While it is not set, who logs in is not answered."""
        self.hold_codes.set()
        self.requests: list[str] = []
        self.too_early = 0
        """Streams that were asked for before the start had arrived."""
        self.auto_finish = True
        """Whether a start succeeds by itself."""
        self.slow_spawn_timeout = 0.0
        self.start_answer: tuple[int, str] | None = None
        """What every start is answered, instead of starting."""
        self.strange_answers: dict[str, bytes] = {}
        """What a request is answered with, whatever it asks for."""
        self.somebody_elses: Counter[str] = Counter()
        """How many times a request is answered by somebody else, who knows no such page."""
        self.hold_starts = asyncio.Event()
        """While it is not set, the Hub is too busy to take up starts that it has received."""
        self.hold_starts.set()
        self.hold_strangers = asyncio.Event()
        """While it is not set, who holds an unknown token is not answered."""
        self.hold_strangers.set()
        self.cookies: list[str] = []
        """That came with requests; every answer sets one."""
        self.rename: Callable[[str], str] = str.lower
        """The authenticator's way with names."""
        self.starting = asyncio.Event()
        """Set once a start has been accepted."""
        self.identify(PLATFORM_TOKEN, "platform", "service", "access:services", "admin:users", "servers")
        self.identify(SERVICE_TOKEN, "launcher", "service", "admin:users", "servers", "tokens")

    def identify(self, token: str, name: str, kind: str, *scopes: str, groups: tuple[str, ...] = ()) -> str:
        """Make a token known."""
        self.identities[token] = {
            "name": name,
            "kind": kind,
            "groups": list(groups),
            "scopes": list(scopes),
            "admin": False,
        }
        if kind == "user":
            self.users.setdefault(name, {"groups": list(groups)})
        return token

    def count(self) -> Counter[str]:
        """Requests by method and path pattern, but for those that ask who a caller is."""
        return Counter(request for request in self.requests if request != "GET /user")

    async def start(self, ssl_options: Any = None, port: int = 0) -> None:
        routes = [
            (r"/hub/api/?", _Version),
            (r"/hub/api/user", _Self),
            (r"/hub/api/oauth2/token", _Codes),
            (r"/hub/api/users", _Users),
            (r"/hub/api/users/([^/]+)", _User),
            (r"/hub/api/groups/([^/]+)", _Group),
            (r"/hub/api/groups/([^/]+)/users", _GroupUsers),
            (r"/hub/api/users/([^/]+)/tokens", _Tokens),
            (r"/hub/api/users/([^/]+)/tokens/([^/]+)", _Token),
            (r"/hub/api/users/([^/]+)/servers?/?([^/]*)/progress", _Progress),
            (r"/hub/api/users/([^/]+)/server()", _Server),
            (r"/hub/api/users/([^/]+)/servers/([^/]+)", _Server),
        ]
        self._server = HTTPServer(Application(routes, hub=self, log_function=self._log), ssl_options=ssl_options)
        sockets = bind_sockets(port, "127.0.0.1")
        self._server.add_sockets(sockets)
        self.port = sockets[0].getsockname()[1]
        self.api_url = f"http{'s' if ssl_options else ''}://127.0.0.1:{self.port}/hub/api"

    async def stop(self) -> None:
        for server in self.servers.values():
            server.done.set()
            server.changed.set()
        self._server.stop()
        await self._server.close_all_connections()

    def _log(self, handler: RequestHandler) -> None:
        pass


class _Handler(RequestHandler):
    hub: FakeHub

    def set_default_headers(self) -> None:
        self.set_header("Content-Type", "application/json")

    async def prepare(self) -> None:
        self.hub = self.settings["hub"]
        self.hub.cookies += self.request.cookies
        self.set_cookie("jupyterhub-hub-login", "alice")
        self.hub.requests.append(f"{self.request.method} {self.request.path.removeprefix('/hub/api')}")
        self.token = self.request.headers.get("Authorization", "").removeprefix("token ")
        if self.token not in self.hub.identities:
            await self.hub.hold_strangers.wait()
            raise HTTPError(403)

        if self.hub.somebody_elses[self.hub.requests[-1]]:
            self.hub.somebody_elses[self.hub.requests[-1]] -= 1
            self.set_header("Content-Type", "text/html")
            self.set_status(404)
            self.finish("<h1>404 Not Found</h1>")
            return
        strange = self.hub.strange_answers.get(self.hub.requests[-1])
        if strange is not None:
            self.finish(strange)

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.request.body) if self.request.body else {}

    def reply(self, status: int, body: Any = None) -> None:
        self.set_status(status)
        if body is not None:
            self.write(json.dumps(body))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.finish(json.dumps({"status": status_code, "message": kwargs["exc_info"][1].log_message or self._reason}))

    def log_exception(self, *args: Any) -> None:
        if not isinstance(args[1], HTTPError):
            super().log_exception(*args)


class _Version(_Handler):
    def get(self) -> None:
        self.reply(200, {"version": "fake"})


class _Self(_Handler):
    def get(self) -> None:
        self.reply(200, self.hub.identities[self.token])


class _Codes(_Handler):
    async def post(self) -> None:
        await self.hub.hold_codes.wait()
        token = self.hub.codes.pop(self.get_body_argument("code"), None)
        if token is None or self.get_body_argument("client_secret") != SERVICE_TOKEN:
            return self.reply(400, {"error": "invalid_grant"})
        return self.reply(200, {"access_token": token, "token_type": "Bearer"})


class _Users(_Handler):
    def get(self) -> None:
        active = {user for (user, _), server in self.hub.servers.items() if server.active}
        names = [n for n in self.hub.users if self.get_query_argument("state", "") != "active" or n in active]
        offset, limit = int(self.get_query_argument("offset")), int(self.get_query_argument("limit"))
        end = offset + limit
        items = [user_model(self.hub, name) for name in names[offset:end]]
        self.reply(200, {"items": items, "_pagination": {"next": {"offset": end} if end < len(names) else None}})

    def post(self) -> None:
        names = [self.hub.rename(name) for name in self.json["usernames"]]
        for name in names:
            if name.startswith("invalid"):
                raise HTTPError(400, f"Invalid username: {name}")
        new = [name for name in names if name not in self.hub.users]
        if not new:
            raise HTTPError(409, f"All {len(names)} users already exist")
        self.hub.users |= {name: {"groups": []} for name in new}
        self.reply(201, [{"name": name} for name in new])


def user_model(hub: FakeHub, name: str) -> dict[str, Any]:
    servers = {s.name: s.model() for s in hub.servers.values() if s.user == name and s.active}
    return {"name": name, "groups": hub.users[name]["groups"], "servers": servers}


class _User(_Handler):
    def get(self, name: str) -> None:
        if name not in self.hub.users:
            raise HTTPError(404)
        self.reply(200, user_model(self.hub, name))

    def delete(self, name: str) -> None:
        if self.hub.users.pop(name, None) is None:
            raise HTTPError(404)
        self.reply(204)


class _Group(_Handler):
    def get(self, name: str) -> None:
        if name not in self.hub.groups:
            raise HTTPError(404)
        self.reply(200, {"name": name})

    def post(self, name: str) -> None:
        self.hub.groups.add(name)
        self.reply(201, {"name": name})


class _GroupUsers(_Handler):
    def post(self, name: str) -> None:
        for user in self.json["users"]:
            self.hub.users[user]["groups"].append(name)
        self.reply(200, {"name": name})


class _Server(_Handler):
    async def post(self, user: str, name: str) -> None:
        if user not in self.hub.users:
            raise HTTPError(404, "no such user")
        if self.hub.throttle:
            delay = self.hub.throttle.pop(0)
            if delay is not None:
                self.set_header("Retry-After", str(delay))
            return self.reply(429, {"message": "Too many users trying to log in right now."})
        await self.hub.hold_starts.wait()
        if self.hub.start_answer:
            raise HTTPError(*self.hub.start_answer)
        server = self.hub.servers.setdefault((user, name), FakeServer(name, user))
        if server.pending == "spawn":
            return self.reply(202)
        if server.active:
            raise HTTPError(400, f"{user}: is {'pending stop' if server.pending else 'already running'}")
        self._spawn(server)
        if Misbehaviour.LOSES_START_ANSWER in self.hub.misbehaviours:
            return self.request.connection.stream.close()
        if Misbehaviour.CREATED_THOUGH_NOT_READY in self.hub.misbehaviours:
            return self.reply(201)
        if Misbehaviour.ERROR_WHILE_PENDING in self.hub.misbehaviours:
            raise HTTPError(500, "Spawner failed to start [status=1].")
        if self.hub.auto_finish:
            server.finish()
        else:
            await asyncio.wait([asyncio.ensure_future(server.done.wait())], timeout=self.hub.slow_spawn_timeout)
        if server.done.is_set() and not server.ready:
            raise HTTPError(500, "Internal Server Error")
        return self.reply(201 if server.ready else 202)

    def _spawn(self, server: FakeServer) -> None:
        server.pending, server.events, server.done = "spawn", [], asyncio.Event()
        server.user_options = self.json
        if Misbehaviour.IGNORES_OPTIONS not in self.hub.misbehaviours:
            server.user_options["launcher"]["applied"] = True
        server.emit(0, "Server requested")
        self.hub.starting.set()

    async def delete(self, user: str, name: str) -> None:
        server = self.hub.servers.get((user, name))
        if server is None:
            raise HTTPError(404)
        if not server.active:
            return self.reply(204)
        if server.pending == "spawn" and Misbehaviour.GOES_ON_AFTER_CANCEL in self.hub.misbehaviours:
            self.hub.misbehaviours.remove(Misbehaviour.GOES_ON_AFTER_CANCEL)
            server.finish()
            raise HTTPError(500, f"{user} pending spawn")
        if server.pending == "spawn":
            # as the real one: for a second after a cancel, events and model say that the server is ready
            server.pending, server.ready = None, True
            server.emit(100, "Server ready", ready=True)
            server.done.set()
            await asyncio.sleep(0.2)
        server.ready = False
        if Misbehaviour.SLOW_TO_STOP in self.hub.misbehaviours:
            server.pending = "stop"
            asyncio.get_running_loop().call_later(0.7, setattr, server, "pending", None)
            return self.reply(202)
        server.pending = None
        return self.reply(204)


class _Progress(_Handler):
    async def get(self, user: str, name: str) -> None:
        server = self.hub.servers.get((user, name))
        if server is None:
            self.hub.too_early += 1
            raise HTTPError(404)
        if not server.pending and not server.ready and not (server.events and server.events[-1].get("failed")):
            raise HTTPError(400, "is not starting...")
        self.set_header("Content-Type", "text/event-stream")
        self.write("\n\n")
        sent = 0
        try:
            while not (sent and server.is_final(server.events[sent - 1])):
                changed = server.changed
                for event in server.events[sent:]:
                    self.write(f"data: {json.dumps(event)}\n\n")
                    await self.flush()
                    sent += 1
                if Misbehaviour.BREAKS_STREAMS in self.hub.misbehaviours and not server.ready and sent > 1:
                    self.request.connection.stream.close()
                    return
                if sent == len(server.events):
                    if server.done.is_set():
                        return
                    await changed.wait()
        except StreamClosedError:
            return


class _Tokens(_Handler):
    def get(self, user: str) -> None:
        tokens = [{"id": key[1], **model} for key, model in self.hub.tokens.items() if key[0] == user]
        self.reply(200, {"api_tokens": tokens})

    def post(self, user: str) -> None:
        if Misbehaviour.REFUSES_TOKENS in self.hub.misbehaviours:
            raise HTTPError(400, "excess scopes")
        token_id = f"a{len(self.hub.tokens) + 1}"
        self.hub.tokens[user, token_id] = self.json
        self.reply(201, {"id": token_id, "token": f"secret-{token_id}"})


class _Token(_Handler):
    def delete(self, user: str, token_id: str) -> None:
        if self.hub.tokens.pop((user, token_id), None) is None:
            raise HTTPError(404)
        self.reply(204)
