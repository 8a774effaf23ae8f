"""Mounted ASGI applications, found by the prefix of the path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from starlette.types import ASGIApp, Receive, Scope, Send

from microkit.contract import ANYONE
from microkit.errors import DefinitionError
from microkit.web.access import Access
from microkit.web.call import Call, HeaderList, Reply
from microkit.web.endpoint import Served
from microkit.web.route import Mount


@runtime_checkable
class Responds(Protocol):
    """A mounted application that can hand its answer over as it is, which spares the way through ASGI's messages."""

    async def respond(self, scope: Scope, receive: Receive) -> tuple[int, HeaderList, bytes] | ASGIApp:
        """Status, headers (without a length, and fit to be sent) and body; or what streams the answer."""
        ...


class Mounted:
    """One mount."""

    def __init__(self, mount: Mount, access: Access) -> None:
        self._access = access
        self._app = mount.app
        self._allow = (mount.allow,) if isinstance(mount.allow, str) else tuple(mount.allow)
        self._open = ANYONE in self._allow
        self.prefix = mount.path.rstrip("/")
        if not any(self._allow):
            raise DefinitionError(f"the mount at {mount.path!r} does not say who may call it: allow=…")
        if mount.path not in {"", "/"} and not self.prefix.startswith("/"):
            raise DefinitionError(f"the mount at {mount.path!r}: the path begins with a slash")
        # A mounted application may stream for hours, and keeps its own deadlines.
        app: object = mount.app
        self._responds = app.respond if isinstance(app, Responds) else None
        self.served = Served(f"{self.prefix}/*", self.answer, timeout=0.0)

    def covers(self, path: str) -> bool:
        return path.startswith(self.prefix) and path[len(self.prefix) : len(self.prefix) + 1] in {"", "/"}

    async def answer(self, call: Call) -> Reply | ASGIApp:
        if not self._open:
            call.principal = await self._access.admit(call.token, self._allow)
        scope = self.scope(call.scope)
        scope["state"]["principal"] = call.principal
        if self._responds is not None:
            try:
                found = await self._responds(scope, call.receive)
            finally:
                self._told(call, scope)
            return Reply(*found) if isinstance(found, tuple) else found

        async def answer(_: Scope, receive: Receive, send: Send) -> None:
            try:
                await self._app(scope, receive, send)
            finally:
                self._told(call, scope)

        return answer

    @staticmethod
    def _told(call: Call, scope: Scope) -> None:
        """A mounted application that knows more than its mount tells metric, span and access line."""
        call.principal = scope["state"].get("principal", call.principal)
        call.route = scope["state"].get("route", "")

    async def websocket(self, scope: Scope, token: str | None, receive: Receive, send: Send) -> None:
        """Hands a WebSocket over.

        Raises:
            Problem: the caller may not.
        """
        principal = await self._access.admit_for(self._allow, token)
        scope = self.scope(scope)
        scope["state"]["principal"] = principal
        await self._app(scope, receive, send)

    def scope(self, scope: Scope) -> Scope:
        """The scope as the mounted application sees it."""
        if self._responds is not None and not self.prefix and "state" in scope:
            return scope  # our own gateway changes nothing in it; others may
        state = dict(scope.get("state") or {})
        return {**scope, "root_path": scope.get("root_path", "") + self.prefix, "state": state}


def mounted(mounts: Sequence[Mount], access: Access) -> list[Mounted]:
    """All mounts, the longest prefix first."""
    found = [Mounted(mount, access) for mount in mounts]
    prefixes = [one.prefix for one in found]
    if twice := {prefix for prefix in prefixes if prefixes.count(prefix) > 1}:
        raise DefinitionError(f"there are two mounts at {sorted(twice)[0] or '/'}")
    return sorted(found, key=lambda one: len(one.prefix), reverse=True)
