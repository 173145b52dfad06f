"""The hooks server's socket for our own programs: HTTP on control.sock, JSON. docs/hooks.md lists it.

Imported by the hooks server only.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from _claude_sandbox.hooks.event import HOST_REPLIED
from _claude_sandbox.system.unix_http import Limits, UnixServer, answer

LIMITS = Limits(lifetime=60.0, connections=64)  # a test of notifications may wait for a desktop


class Controlled(Protocol):
    """What the server does when it is asked."""

    def state(self) -> dict[str, Any]: ...

    async def refresh(self) -> None: ...

    async def notify_test(self) -> list[str]: ...

    def replied(self, sandbox: str, session_id: str, seq: int) -> bool: ...

    def stop_soon(self) -> None: ...

    def log(self, text: str, about: str = "") -> None: ...


class Control:
    def __init__(self, path: Path, server: Controlled) -> None:
        self._server = server
        self._http = UnixServer(path, self._handle, server.log, LIMITS)
        self._ways: Mapping[tuple[str, str], Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {
            ("GET", "/state"): self._state,
            ("POST", "/refresh"): self._refresh,
            ("POST", "/stop"): self._stop,
            ("POST", "/notify-test"): self._notify_test,
            ("POST", "/inject"): self._inject,
        }

    async def start(self) -> None:
        await self._http.start()

    async def close(self) -> None:
        await self._http.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        way = self._ways.get((request.method, request.path))
        if way is None:
            return answer(404, {"error": f"no {request.method} {request.path} here"})
        body = await self._http.body(request)
        try:
            value = json.loads(body) if body.strip() else {}
            if not isinstance(value, dict):
                raise ValueError("no JSON object")
            return answer(200, await way(value))
        except (ValueError, RecursionError) as error:
            return answer(400, {"error": str(error)})

    async def _state(self, _body: dict[str, Any]) -> dict[str, Any]:
        return self._server.state()

    async def _refresh(self, _body: dict[str, Any]) -> dict[str, Any]:
        await self._server.refresh()
        return {"ok": True}

    async def _stop(self, _body: dict[str, Any]) -> dict[str, Any]:
        self._server.stop_soon()
        return {"ok": True}

    async def _notify_test(self, _body: dict[str, Any]) -> dict[str, Any]:
        return {"ways": await self._server.notify_test()}

    async def _inject(self, body: dict[str, Any]) -> dict[str, Any]:
        """`{"name":"HostReplied","sandbox","session_id","answers":SEQ}`."""
        name, sandbox = body.get("name"), body.get("sandbox")
        if not isinstance(sandbox, str):
            raise ValueError("no sandbox")
        session, seq = body.get("session_id"), body.get("answers")
        if name == HOST_REPLIED and isinstance(session, str) and type(seq) is int:
            return {"ok": self._server.replied(sandbox, session, seq)}
        raise ValueError("no event of the host")
