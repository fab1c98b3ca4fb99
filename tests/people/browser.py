"""What somebody with a browser does at the Hub: set a password with a link, log in."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

import aiohttp

XSRF = re.compile(r'name="_xsrf" value="([^"]+)"')


class Browser:
    """Somebody's browser, with cookies."""

    def __init__(self) -> None:
        self._client = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))

    async def __aenter__(self) -> Browser:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def get(self, url: str) -> tuple[int, str, str]:
        """Status, page, and the address where it ended."""
        async with self._client.get(url) as response:
            return response.status, await response.text(), str(response.url)

    async def fill(self, url: str, **fields: str) -> tuple[int, str, str]:
        """Open a page and send its form; where it shows none, as one might who has made a form for it."""
        where = url.partition("?token=")[0]
        _, page, _ = await self.get(url)
        if not XSRF.search(page):
            _, page, _ = await self.get(where.replace("set-password", "login"))
        found = XSRF.search(page)
        xsrf = found[1] if found else ""
        async with self._client.post(where, data={"_xsrf": xsrf, **fields}) as response:
            return response.status, await response.text(), str(response.url)

    async def set_password(self, link: str, password: str, again: str | None = None) -> tuple[int, str]:
        """Follow a link of a mail's; status and page."""
        token = link.partition("token=")[2]
        status, page, _ = await self.fill(link, token=unquote_plus(token), password=password, again=again or password)
        return status, page

    async def log_in(self, hub: str, username: str, password: str) -> bool:
        """Whether this user name and password are let in."""
        status, _, where = await self.fill(f"{hub}hub/login?next=/hub/home", username=username, password=password)
        return status == 200 and "/hub/login" not in where
