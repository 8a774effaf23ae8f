"""A stand-in for a Consul agent: its documented HTTP API over a real socket, as far as discovery uses it.

There is no Consul to be had as a package. What this answers is taken from the documentation, status codes and headers
included; :class:`Fault` makes it ill. It has no ACLs (but remembers tokens), no Connect, one node and one datacenter.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final, cast

import aiohttp
from aiohttp import web

from microkit.testing.consul_agent import Agent, Refused, Status, go_duration, shown

LONGEST_WAIT: Final = 600.0
DEFAULT_WAIT: Final = 300.0

_TAGGED: Final = re.compile(r'"([^"]+)" in Service\.Tags')
_TICK: Final = 0.2


@dataclass(frozen=True, slots=True)
class Fault:
    """How the agent is ill while :attr:`ConsulServer.fault` is set, for the requests whose path begins with ``path``.

    ``status`` answers with it (``retry_after`` as its header); ``hang`` takes requests and never answers; ``empty``
    answers health queries with no instance; ``index`` is sent in place of the true one, ``""`` sends no such header;
    ``body`` in place of the true body.
    """

    status: int | None = None
    retry_after: str | None = None
    hang: bool = False
    empty: bool = False
    index: str | None = None
    body: str | None = None
    path: str = "/v1/"


class ConsulServer:
    """The agent on loopback: ``async with ConsulServer() as consul:``, then ``consul.url`` is a discovery URL.

    ``requests`` counts requests by method and the first three parts of their path, ``GET /v1/health/service``.
    """

    def __init__(self) -> None:
        self.agent = Agent()
        self.fault: Fault | None = None
        self.requests: Counter[str] = Counter()
        self.queries: list[dict[str, str]] = []
        """The parameters of each health query."""
        self.tokens: set[str] = set()
        self.port = 0
        self._runner: web.AppRunner | None = None
        self._ticking: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"consul://127.0.0.1:{self.port}"

    async def __aenter__(self) -> ConsulServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Listens; a second time on the same port."""
        app = web.Application(middlewares=[self._answer])
        app.router.add_put("/v1/agent/service/register", self._register)
        app.router.add_put("/v1/agent/service/deregister/{id}", self._deregister)
        app.router.add_get("/v1/agent/service/{id}", self._service)
        app.router.add_get("/v1/agent/services", self._services)
        app.router.add_put("/v1/agent/check/{verb:pass|warn|fail}/{id}", self._check)
        app.router.add_get("/v1/health/service/{name}", self._health)
        app.router.add_route("*", "/v1/kv/{key:.+}", self._kv)
        app.router.add_get("/v1/status/leader", self._leader)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._ticking = asyncio.create_task(self._tick(), name="consul")

    async def kill(self) -> None:
        """Ends it at once: connections break off, new ones are refused. What it knew stays for :meth:`start`."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
            self._ticking = None
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def restart(self, *, index: int = 1) -> None:
        """A new agent at the same place, that knows nothing and counts from ``index``."""
        await self.kill()
        self.agent = Agent(index)
        await self.start()

    def reset(self, index: int) -> None:
        """The index of all goes to ``index``, as when an older snapshot is restored; whoever waits is answered."""
        self.agent.index = index
        self.agent.names = dict.fromkeys(self.agent.names, index)
        self.agent.extinction = index
        self.agent.wrote()
        self.agent.index = index

    def touch(self) -> None:
        """A write to every service that changes nothing of it; whoever waits is answered."""
        for name in self.agent.names:
            self.agent.names[name] = self.agent.wrote()

    async def run_checks(self) -> None:
        """Runs the HTTP checks now, in place of waiting for their intervals."""
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for service in list(self.agent.services.values()):
                for check in service.checks.values():
                    if check.http is not None:
                        status, output = await _asked(session, check.http)
                        self.agent.set_status(service, check, status, output)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self.agent.expire()

    @web.middleware
    async def _answer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests[f"{request.method} {'/'.join(request.path.split('/')[:4])}"] += 1
        if token := request.headers.get("X-Consul-Token"):
            self.tokens.add(token)
        fault = self.fault if self.fault is not None and request.path.startswith(self.fault.path) else None
        if fault is not None and fault.hang:
            await asyncio.Event().wait()
        if fault is not None and fault.status is not None:
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            return web.Response(status=fault.status, text=fault.body or "rpc error: No cluster leader", headers=headers)
        try:
            answer = cast("web.StreamResponse", await handler(request))
        except Refused as refused:
            return web.Response(status=refused.status, text=str(refused))
        if fault is not None and fault.index is not None:
            answer.headers.popall("X-Consul-Index", None)
            if fault.index:
                answer.headers["X-Consul-Index"] = fault.index
        if fault is not None and fault.body is not None and isinstance(answer, web.Response):
            answer.text = fault.body
        return answer

    async def _register(self, request: web.Request) -> web.Response:
        replace = "replace-existing-checks" in request.query
        self.agent.register(await request.read(), replace_checks=replace)
        return web.Response()

    async def _deregister(self, request: web.Request) -> web.Response:
        self.agent.deregister(request.match_info["id"])
        return web.Response()

    async def _service(self, request: web.Request) -> web.Response:
        service = self.agent.services.get(request.match_info["id"])
        if service is None:
            raise Refused(404, f"unknown service ID: {request.match_info['id']}")
        return _json(shown(service))

    async def _services(self, _: web.Request) -> web.Response:
        return _json({service_id: shown(service) for service_id, service in self.agent.services.items()})

    async def _check(self, request: web.Request) -> web.Response:
        verbs: dict[str, Status] = {"pass": "passing", "warn": "warning", "fail": "critical"}
        self.agent.update(request.match_info["id"], verbs[request.match_info["verb"]], request.query.get("note", ""))
        return web.Response()

    async def _leader(self, _: web.Request) -> web.Response:
        return _json("127.0.0.1:8300")

    async def _health(self, request: web.Request) -> web.Response:
        self.queries.append(dict(request.query))
        name = request.match_info["name"]
        await self._block(request, lambda: self.agent.index_of(name))
        tags = [*request.query.getall("tag", []), *_TAGGED.findall(request.query.get("filter", ""))]
        entries = self.agent.entries(name, passing="passing" in request.query, tags=tags)
        if self.fault is not None and self.fault.empty:
            entries = []
        return _json(entries, self.agent.index_of(name))

    async def _kv(self, request: web.Request) -> web.Response:
        key, keys = request.match_info["key"], self.agent.keys
        if request.method == "GET":
            await self._block(request, lambda: keys[key]["ModifyIndex"] if key in keys else self.agent.index)
            if key not in keys:
                return web.Response(status=404, headers={"X-Consul-Index": str(self.agent.index)})
            return _json([keys[key]], keys[key]["ModifyIndex"])
        if request.method == "DELETE":
            if keys.pop(key, None) is not None:
                self.agent.wrote()
            return _json(True)
        known = keys.get(key)
        if "cas" in request.query and int(request.query["cas"]) != (known["ModifyIndex"] if known else 0):
            return _json(False)
        value = base64.b64encode(await request.read()).decode()
        index = self.agent.wrote()
        created = known["CreateIndex"] if known else index
        keys[key] = {
            "Key": key,
            "Flags": 0,
            "LockIndex": 0,
            "Value": value,
            "CreateIndex": created,
            "ModifyIndex": index,
        }
        return _json(True)

    async def _block(self, request: web.Request, current: Any) -> None:
        """Waits while the index is not above the one that the request names."""
        try:
            index = int(request.query.get("index", "0"))
        except ValueError:
            raise Refused(400, "Invalid index") from None
        wait = min(go_duration(request.query["wait"], "wait time"), LONGEST_WAIT) if "wait" in request.query else 0.0
        if index < 1:
            return
        wait = wait or DEFAULT_WAIT
        try:
            async with asyncio.timeout(wait + random.uniform(0, wait / 16)):  # noqa: S311  spreads load
                while current() <= index:
                    woken = self.agent.change()
                    await woken
                    if current() < index:  # a restored snapshot: whoever waits is answered with what there is
                        return
        except TimeoutError:
            return


def _json(value: object, index: int | None = None) -> web.Response:
    headers = {"X-Consul-KnownLeader": "true", "X-Consul-LastContact": "0", "X-Consul-Effective-Consistency": "leader"}
    if index is not None:
        headers["X-Consul-Index"] = str(index)
    return web.Response(text=json.dumps(value), content_type="application/json", headers=headers)


async def _asked(session: aiohttp.ClientSession, url: str) -> tuple[Status, str]:
    try:
        async with session.get(url) as answer:
            output = f"HTTP GET {url}: {answer.status}"
            if answer.status == 429:
                return "warning", output
            return ("passing" if answer.ok and answer.status < 300 else "critical"), output
    except (aiohttp.ClientError, TimeoutError) as error:
        return "critical", f"Get {url!r}: {error}"
