"""The one server that all launches of a comparison point at: it answers anything."""

from __future__ import annotations

import asyncio
import sys

from tornado.web import Application, RequestHandler


class Echo(RequestHandler):
    def get(self) -> None:
        self.finish({})


async def main() -> None:
    Application([(".*", Echo)], log_function=lambda handler: None).listen(int(sys.argv[1]), "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
