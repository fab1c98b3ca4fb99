"""The page for people, its files, and the login with JupyterHub that leads to it.

What is shown is put together in the browser, from the same resources that programs ask (``static/``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader
from jupyterhub.services.auth import HubOAuthCallbackHandler
from tornado.web import HTTPError, StaticFileHandler

from ..access import START
from ..errors import CallerError, LauncherError, NotFound, Unauthenticated
from .callers import HubHandler

STATIC = Path(__file__).parent.parent / "static"

_RESOURCES = (
    "batches", "containers", "health", "launches", "metrics", "openapi.json", "options", "ready", "templates"
)  # fmt: skip
_templates = Environment(loader=PackageLoader("jhlauncher"), autoescape=True, trim_blocks=True, lstrip_blocks=True)


class PageHandler(HubHandler):
    """HTML, for people who have logged in at the Hub."""

    needs_caller = False  # `admit_person` has another way to turn strangers away
    navigable = True

    async def admit_person(self) -> bool:
        """Let a person in; False if their browser has been sent to the Hub's login instead.

        Raises:
            Forbidden: their scopes do not reach this service.

        """
        try:
            await self.admit()
        except Unauthenticated:
            if "Authorization" in self.request.headers:
                raise
            self.redirect(self.get_login_url())
            return False
        return True

    def show(self, template: str, **values: Any) -> None:
        """Finish with a page."""
        sessions = self.hub_auth
        hub = sessions.hub_host + sessions.hub_prefix
        host = urlsplit(sessions.hub_host)
        sources = f"'self' {host.scheme}://{host.netloc}" if host.netloc else "'self'"
        self.set_header("Content-Type", "text/html; charset=UTF-8")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header(
            "Content-Security-Policy",
            f"default-src 'none'; script-src 'self'; connect-src 'self'; style-src {sources}; font-src {sources}; "
            f"img-src {sources} data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        caller = getattr(self, "caller", None)
        page = _templates.get_template(template)
        self.finish(page.render(base=self.services.prefix, hub=hub, caller=caller, **values))

    @property
    def wants_page(self) -> bool:
        """Whether the client is a browser that shows pages."""
        return "text/html" in self.request.headers.get("Accept", "")

    def finish_error(self, error: LauncherError) -> None:
        """Show what happened, as a page to those who want one."""
        if self.wants_page:
            self.show("error.html", error=error, status=self.status_of(error))
        else:
            super().finish_error(error)

    def show_launcher(self) -> None:
        """Finish with the page of launches."""
        self.xsrf_token  # noqa: B018  (sets the cookie that the page sends back)
        self.show(
            "page.html",
            everybody=not self.caller.scopes.isdisjoint(START),
            groups=sorted(self.caller.filters("group", *START)),
            users=sorted(self.caller.filters("user", *START)),
            # whether to ask where they have an account; without systems, there is nobody to ask
            systems=self.caller.kind == "user" and bool(self.settings["userjobs"].systems),
        )


class IndexHandler(PageHandler):
    """What there is below the prefix: a page for people, names of resources for programs."""

    async def get(self) -> None:
        """Show the page, or name the resources, as the client wants."""
        self.set_header("Vary", "Accept")
        if not self.wants_page:
            self.answer({"service": "jhlauncher", "resources": list(_RESOURCES)})
        elif await self.admit_person():
            self.show_launcher()


class LinkHandler(PageHandler):
    """A link to a launch: the page reads the rest of it."""

    async def get(self) -> None:
        """Show the page."""
        if await self.admit_person():
            self.show_launcher()


class MissingHandler(PageHandler):
    """Any other address."""

    async def prepare(self) -> None:
        """Lead to the page who has forgotten its slash; else answer 404 to every method."""
        if self.request.path == self.services.prefix.rstrip("/") and self.request.method == "GET":
            self.redirect(self.services.prefix)
        else:
            raise NotFound(f"There is nothing at {self.request.path}.")


class LoginHandler(HubOAuthCallbackHandler, PageHandler):  # type: ignore[misc]  # the Hub's has no types
    """Where the Hub sends browsers back to after the login."""

    async def prepare(self) -> None:
        """Find out whether they had logged in already, which JupyterHub's part wants to know."""
        await super().prepare()
        try:
            self.current_user = (await self.authenticate()).name
        except CallerError:
            self.current_user = None

    def translate(self, error: BaseException | None, status_code: int = 500) -> LauncherError:
        """What is wrong with a login is not told in the words that came with it: anybody may have written them."""
        if isinstance(error, HTTPError) and error.status_code < 500:
            return Unauthenticated(
                "The login has failed: it was refused, took too long, or was not begun here. Try again."
            )
        return super().translate(error, status_code)


class FileHandler(StaticFileHandler):
    """The page's scripts and style; nothing secret."""

    def initialize(self) -> None:  # type: ignore[override]  # the folder is known
        """Know the folder."""
        super().initialize(path=str(STATIC))

    def set_extra_headers(self, path: str) -> None:
        """Have browsers ask whether there are newer ones, since modules name each other without a version."""
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Content-Type-Options", "nosniff")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer in the one shape of errors."""
        self.set_header("Content-Type", "application/json")
        self.finish(NotFound(f"There is nothing at {self.request.path}.").as_dict(status_code))
