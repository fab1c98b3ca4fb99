"""Authenticators for JupyterHub 5 and 6 whose users set their own passwords with a link of the launcher's.

``c.JupyterHub.authenticator_class = "jhlauncher-password"`` keeps passwords in the Hub's database,
``"jhlauncher-pam"`` makes system accounts, whose passwords PAM knows. For another authenticator, mix `SetsPasswords`
into its class and say how a password is kept.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

from jupyterhub.auth import Authenticator, PAMAuthenticator
from jupyterhub.handlers.base import BaseHandler
from jupyterhub.utils import new_token
from sqlalchemy.orm import object_session
from traitlets import Bool, Float, Int, List, Unicode, default
from traitlets.config import Configurable

from . import passwords
from .signing import SET_PASSWORD, BadSignature, Signer

_threads = ThreadPoolExecutor(2, thread_name_prefix="passwords")
"""For hashes, which take long on purpose."""
_MOST_CHARACTERS = 256
_CLOCKS = 60
"""Seconds by which the clocks of the Hub and the launcher may differ."""


async def _aside(function: Any, *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(_threads, partial(function, *args))


class SetsPasswords(Configurable):
    """For authenticators whose users set their passwords with a link."""

    signing_key = Unicode(help="The launcher's signing key; install_launcher sets it.").tag(config=True)
    minimum_length = Int(10, min=8, max=128, help="Characters that a password must have at least.").tag(config=True)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.setting = asyncio.Lock()
        """Held while a password is set: of two who use the same link, only the first does."""

    async def store_password(self, user: Any, password: str) -> str:
        """Keep a password; the hash to keep in the Hub's database, or "" if it is kept elsewhere.

        Args:
            user: the Hub's, whose it is.
            password: of one line.

        Raises:
            PasswordNotSet: it could not be kept.

        """
        raise NotImplementedError

    def get_handlers(self, app: Any) -> list[Any]:
        """The page on which a password is set, beside those that the authenticator has."""
        passwords.make_table(app.db)
        handlers: list[Any] = super().get_handlers(app)  # type: ignore[misc]
        return [*handlers, (f"/{SET_PASSWORD}", SetPasswordHandler, {"authenticator": self})]

    async def delete_user(self, user: Any) -> None:
        """Forget the password, too."""
        passwords.forget(*_row_of(user))
        await _awaited(super().delete_user(user))  # type: ignore[misc]

    def read_link(self, token: str) -> Link:
        """What a link says.

        Raises:
            BadLink: it is not the launcher's, or too old.

        """
        try:
            said = Signer(self.signing_key).unseal(token, "password")
            link = Link(str(said["user"]), float(said["issued"]), bool(said["admin"]))
            expires = float(said["expires"])
        except (BadSignature, KeyError, TypeError, ValueError):
            raise BadLink("This link is not complete, or not of this JupyterHub.") from None
        if time.time() > expires:
            raise BadLink("This link is too old.")
        return link

    def is_trusted(self, user: Any) -> bool:
        """Whether a user may do more than users may: an administrator, or somebody with a role of their own."""
        roles = {role.name for owner in (user.orm_user, *user.orm_user.groups) for role in owner.roles}
        return bool(user.admin or user.name in self.admin_users or roles - {"user"})  # type: ignore[attr-defined]

    def objection(self, username: str, password: str) -> str | None:
        """What is wrong with a password; None if nothing is."""
        if len(password) < self.minimum_length:
            return f"The password needs at least {self.minimum_length} characters."
        if len(password) > _MOST_CHARACTERS or any(ord(char) < 32 or ord(char) == 127 for char in password):
            return f"The password must be one line of at most {_MOST_CHARACTERS} characters."
        if username.lower() in password.lower() and len(password) < len(username) + self.minimum_length:
            return "The password must be more than the user name."
        return None


class Link(NamedTuple):
    """What a link says."""

    username: str
    """Whose password it sets."""
    issued: float
    """Seconds since 1970."""
    by_admin: bool
    """Whether an administrator of the Hub asked for it."""


class BadLink(Exception):
    """A link can't be used; the text is for who has it."""


class PasswordNotSet(Exception):
    """A password could not be kept; the text is for the Hub's log."""


def _row_of(user: Any) -> tuple[Any, passwords.Owner]:
    """The Hub's database, and who this is in it: the Hub itself sometimes has no more of a user than their row."""
    row = getattr(user, "orm_user", user)
    db: Any = object_session(row)
    passwords.make_table(db)  # users may come before the Hub has handlers
    return db, passwords.Owner(row.id, row.created.isoformat())


async def _awaited(result: Any) -> Any:
    return await result if hasattr(result, "__await__") else result


class SetPasswordHandler(BaseHandler):  # type: ignore[misc]
    """Where somebody sets their password; needs a link, and no login."""

    def initialize(self, authenticator: SetsPasswords) -> None:
        """Whose users these are."""
        self.sets = authenticator

    def set_default_headers(self) -> None:
        """The link is in the address, and nobody else's to know."""
        super().set_default_headers()
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cache-Control", "no-store")

    async def get(self) -> None:
        """Show the form; nothing is used up, since programs look at links in mails, too."""
        token = self.get_argument("token", "")
        try:
            user, _ = self._user(token)
        except BadLink as error:
            return await self._show(403, bad=str(error))
        return await self._show(200, token=token, username=user.name)

    async def post(self) -> None:
        """Set the password."""
        token = self.get_body_argument("token", "")
        password = self.get_body_argument("password", "", strip=False)
        try:
            async with self.sets.setting:
                user, link = self._user(token)
                problem = self.sets.objection(user.name, password)
                if not problem and password != self.get_body_argument("again", "", strip=False):
                    problem = "The two passwords are not the same."
                if problem:
                    return await self._show(400, token=token, username=user.name, problem=problem)
                kept = await self.sets.store_password(user, password)
                account = passwords.account_of(*_row_of(user))
                passwords.keep(*_row_of(user), kept, issued=link.issued, account=account)
                user.orm_user.cookie_id = new_token()  # whoever was logged in with the old one is not any more
                self.db.commit()
        except BadLink as error:
            return await self._show(403, bad=str(error))
        except PasswordNotSet as error:
            self.log.error("The password of %s was not set: %s", user.name, error)
            problem = "The password could not be set; whoever runs this JupyterHub finds out why in its log."
            return await self._show(500, token=token, username=user.name, problem=problem)
        self.log.info("%s has set a password with a link", user.name)
        return await self._show(200, done=True, username=user.name)

    def _user(self, token: str) -> tuple[Any, Link]:
        """Whose password is to be set, and the link.

        Raises:
            BadLink: there is no such user, or the link can't be used any more.

        """
        link = self.sets.read_link(token)
        user = self.find_user(link.username)
        # an account that was removed and made again is another person's
        if user is None or link.issued + _CLOCKS < user.created.replace(tzinfo=UTC).timestamp():
            raise BadLink("There is no such account any more.")
        if link.issued <= passwords.set_at(*_row_of(user)):
            raise BadLink("This link has been used, or a newer one has.")
        if self.sets.is_trusted(user) and not link.by_admin:
            raise BadLink("This account may do more than others: only an administrator's link sets its password.")
        return user, link

    async def _show(self, status: int, **values: Any) -> None:
        self.set_status(status)
        text = files("jhlauncher").joinpath("templates/set_password.html").read_text(encoding="utf-8")
        template = self.settings["jinja2_env"].from_string(text)
        known = {
            "token": "",
            "username": "",
            "problem": "",
            "bad": "",
            "done": False,
            "minimum": self.sets.minimum_length,
            **values,
        }
        self.finish(await template.render_async(**self.template_namespace, **known))


class LauncherPasswordAuthenticator(SetsPasswords, Authenticator):  # type: ignore[misc]
    """Users whom an administrator or the launcher has made, each with a password of their own in the Hub's database."""

    failed_delay = Float(1, min=0, help="Seconds that a failed login takes at least.").tag(config=True)

    @default("allow_existing_users")
    def _allow_existing_users_default(self) -> bool:
        """Whoever has an account may log in; nobody else has a password."""
        return True

    async def authenticate(self, handler: Any, data: dict[str, str]) -> str | None:
        """The user's name, if the password is theirs."""
        username: str = self.normalize_username(data.get("username", ""))
        password = data.get("password", "")
        user = handler.find_user(username)
        kept = passwords.hash_of(handler.db, _row_of(user)[1] if user else None)
        if len(password) <= _MOST_CHARACTERS and await _aside(passwords.matches, kept, password):
            return username
        await asyncio.sleep(self.failed_delay)
        return None

    async def store_password(self, user: Any, password: str) -> str:
        """In the Hub's database, hashed."""
        return str(await _aside(passwords.hashed, password))


class LauncherPAMAuthenticator(SetsPasswords, PAMAuthenticator):  # type: ignore[misc]
    """System accounts, made with ``useradd`` when the Hub gets a user; passwords go to ``chpasswd``.

    The Hub must run as root. Neither command is run by a shell, and no password is an argument, which others see. Only
    accounts that this has made get their passwords here: whoever may make users of the Hub must not get hold of other
    accounts of the machine.
    """

    useradd = List(
        Unicode(),
        ["useradd", "--create-home", "--shell", "/usr/sbin/nologin"],
        help="""What makes a system account; `--` and the user name follow (useradd(8)). The account has no password
        until its owner sets one.""",
    ).tag(config=True)
    userdel = List(
        Unicode(),
        help="""What removes a system account when the Hub's user is removed, such as ["userdel"]; `--` and the user
        name follow. Default: nothing does.""",
    ).tag(config=True)
    command_timeout = Float(30, min=1, help="Seconds that one of these commands may take.").tag(config=True)

    create_system_users = Bool(True, help="Make a system account for each user that has none.").tag(config=True)

    @default("allow_existing_users")
    def _allow_existing_users_default(self) -> bool:
        """Whoever has an account at the Hub may log in; other system accounts may not."""
        return True

    async def add_system_user(self, user: Any) -> None:
        """Make a system account.

        Raises:
            RuntimeError: it could not be made; says why.

        """
        await self._run([*self.useradd, "--", user.name])
        passwords.keep(*_row_of(user), account=user.name)

    async def delete_user(self, user: Any) -> None:
        """Remove the system account, if that is configured."""
        account = passwords.account_of(*_row_of(user))
        await super().delete_user(user)
        if account == user.name and self.userdel:
            await self._run([*self.userdel, "--", account])

    async def store_password(self, user: Any, password: str) -> str:
        """As the system account's."""
        if passwords.account_of(*_row_of(user)) != user.name:  # it was not, or the user was renamed since
            raise PasswordNotSet("its system account was not made by this Hub; set its password with passwd(1)")
        try:
            await self._run(["chpasswd"], f"{user.name}:{password}\n")
        except RuntimeError as error:
            raise PasswordNotSet(str(error)) from error
        return ""

    async def _run(self, command: list[str], text: str = "") -> None:
        """Run a command, with this to read.

        Raises:
            RuntimeError: it failed; has what it said.

        """
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            raise RuntimeError(f"{command[0]} can't be run: {error.strerror}") from error
        try:
            async with asyncio.timeout(self.command_timeout):
                said, _ = await process.communicate(text.encode())
        except TimeoutError:
            process.kill()
            await process.wait()
            raise RuntimeError(f"{command[0]} took more than {self.command_timeout:g} seconds") from None
        if process.returncode:
            raise RuntimeError(f"{command[0]}: {said.decode(errors='replace').strip()[:500]}")
