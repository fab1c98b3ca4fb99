"""Looks at a launched server from inside, as its user does: with a notebook's kernel."""

from __future__ import annotations

import asyncio
import json
import textwrap
import uuid
from typing import Any

import aiohttp

PROBE = """
import json, os, pathlib
def first(*paths):
    for path in paths:
        try:
            return pathlib.Path(path).read_text().split()
        except OSError:
            pass
cgroup = "/sys/fs/cgroup/"
print(json.dumps({
    "env": dict(os.environ),
    "memory": first(cgroup + "memory.max", cgroup + "memory/memory.limit_in_bytes"),
    "memory_request": first(cgroup + "memory.low", cgroup + "memory/memory.soft_limit_in_bytes"),
    "cpu": first(cgroup + "cpu.max") or (
        (first(cgroup + "cpu/cpu.cfs_quota_us") or []) + (first(cgroup + "cpu/cpu.cfs_period_us") or [])),
    "cpu_request": first(cgroup + "cpu.weight", cgroup + "cpu/cpu.shares"),
}))
"""


async def run(launched: dict[str, Any], code: str) -> str:
    """What ``code`` prints in a kernel of the launched server; an exception there is one here."""
    headers = {"Authorization": f"token {launched['token']}"}
    async with asyncio.timeout(60), aiohttp.ClientSession(headers=headers) as client:
        async with client.post(f"{launched['url']}api/kernels", json={"name": "python3"}) as response:
            assert response.status == 201, await response.text()
            kernel = (await response.json())["id"]
        url = f"{launched['url']}api/kernels/{kernel}"
        try:
            async with client.ws_connect(f"{url}/channels", max_msg_size=0) as socket:
                return await _execute(socket, textwrap.dedent(code))
        finally:
            async with client.delete(url) as response:
                assert response.status == 204


async def _execute(socket: aiohttp.ClientWebSocketResponse, code: str) -> str:
    request = _message("execute_request", code=code, silent=False)
    await socket.send_json(request)
    printed = []
    while True:
        try:
            frame = await socket.receive(timeout=5)
        except TimeoutError:
            # ipykernel with the oldest Tornado may miss that a message has come, until there is another
            await socket.send_json(_message("kernel_info_request"))
            continue
        assert frame.type is aiohttp.WSMsgType.TEXT, "the kernel is gone"
        reply = json.loads(frame.data)
        if reply["parent_header"].get("msg_id") != request["header"]["msg_id"]:
            continue
        kind, content = reply["header"]["msg_type"], reply["content"]
        if kind == "stream" and content["name"] == "stdout":
            printed.append(content["text"])
        elif kind == "error":
            raise AssertionError("\n".join(content["traceback"]))
        elif kind == "status" and content["execution_state"] == "idle":
            return "".join(printed)


def _message(kind: str, **content: Any) -> dict[str, Any]:
    """A message for a kernel (https://jupyter-client.readthedocs.io/en/stable/messaging.html)."""
    header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": uuid.uuid4().hex, "version": "5.3"}
    header["username"] = "test"
    return {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}


async def probe(launched: dict[str, Any]) -> dict[str, Any]:
    """The environment and the limits that the server sees."""
    found: dict[str, Any] = json.loads(await run(launched, PROBE))
    return found
