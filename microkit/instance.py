"""A running service: everything it owns, started and stopped in one fixed order.

Two instances in one process share nothing that they were not both handed (a memory bus, a registry, a trace ring).
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, Self, TypeVar

from microkit.assembly import Assembly
from microkit.bus.port import Bus
from microkit.contract import Caller, Contract, Operation
from microkit.db import Database
from microkit.declared import Declared
from microkit.discovery.memory import MemoryRegistry
from microkit.discovery.own import own_endpoint
from microkit.discovery.port import Endpoint, Registrar
from microkit.errors import ConfigurationError, MicrokitError
from microkit.parts import Parts
from microkit.placement import Placement
from microkit.settings import ServiceSettings
from microkit.settings.values import is_loopback
from microkit.telemetry import Telemetry, TraceRing
from microkit.telemetry.logs import serving
from microkit.web import Health, Server, State

R = TypeVar("R")
C = TypeVar("C", bound=Contract)

_log = logging.getLogger(__name__)

_ADMIN_DRAIN: Final = 1.0

_running: Final[ContextVar[Instance]] = ContextVar("microkit_instance")


class ClientOfRunning:
    """Carries out the calls of a client that was made while the module loaded: by the instance at work."""

    def __init__(self, contract: type[Contract]) -> None:
        self._contract = contract

    async def call(self, operation: Operation[..., R], arguments: Mapping[str, Any]) -> R:
        instance = _running.get(None)
        if instance is None:
            raise MicrokitError(
                f"{operation.qualified_name} is called outside of a running service. Call it from a handler, a saga or "
                "a resource; in a test, from inside `async with service.instance():`, through instance.client(...)"
            )
        return await instance.caller(self._contract).call(operation, arguments)


class Instance:
    """One running service. Made by :meth:`microkit.Service.instance`, entered with ``async with``.

    Start order: settings, admin endpoints where they are wanted, telemetry, database, clients, resources, consumers
    declared, server listening, relay, sagas and consumers at work, ready, registered. The stop order and its reasons
    stand in :meth:`_stop`. One that was stopped, or failed to start, may be started again: everything it owns is then
    made anew.
    """

    def __init__(
        self,
        declared: Declared,
        settings: ServiceSettings,
        *,
        bus: Bus | None = None,
        registry: MemoryRegistry | None = None,
        ring: TraceRing | None = None,
        placement: Placement | None = None,
    ) -> None:
        self.declared = declared
        self.settings = settings
        self.health = Health()
        self._shared_bus = bus
        self._registry = registry
        self._ring = ring
        self._placement = placement
        self._parts: Parts | None = None
        self._server: Server | None = None
        self._url: str | None = None
        self.admin_url: str | None = None
        """Where the admin endpoints are, from the beginning of its start to its end; ``None`` where there are none."""
        self.began = datetime.now(UTC)
        """When it was last started."""
        self._endpoint: Endpoint | None = None
        self._task: asyncio.Task[None] | None = None
        self._started = asyncio.Event()
        self._stopping = asyncio.Event()
        self.failed = asyncio.Event()
        """Set when the instance can no longer do its work, and only a new process will help; :attr:`failure` says why.
        It answers requests still, and its liveness says no. Whoever runs it ends it, and exits with an error."""
        self.failure: MicrokitError | None = None

    def __repr__(self) -> str:
        return f"<Instance of {self.name}>"

    @property
    def name(self) -> str:
        return self.declared.name

    @property
    def running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._url is not None

    @property
    def url(self) -> str:
        """Where it listens, without a path; still known while it stops."""
        if self._url is None:
            raise self._not_running()
        return self._url

    @property
    def telemetry(self) -> Telemetry:
        return self.parts.telemetry

    @property
    def database(self) -> Database:
        """The service's database.

        Raises:
            ConfigurationError: the service has none.
        """
        if self.parts.database is None:
            raise ConfigurationError(f"{self.name} has no database: give Service(...) tables= or migrations=")
        return self.parts.database

    @property
    def parts(self) -> Parts:
        """Everything that the instance owns while it runs."""
        if self._parts is None:
            raise self._not_running()
        return self._parts

    @property
    def parts_now(self) -> Parts | None:
        """As :attr:`parts`; ``None`` while it starts, and when it has stopped."""
        return self._parts

    def _not_running(self) -> MicrokitError:
        return MicrokitError(f"{self.name} is not running: `async with service.instance() as instance:`")

    def client(self, contract: type[C]) -> C:
        """The operations of another service as this one calls them, in its own name outside of a request."""
        return contract(self.caller(contract))

    def caller(self, contract: type[Contract]) -> Caller:
        """What carries out the calls to the contract's service."""
        return self.parts.caller(contract.contract_service)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts it; returns when it is ready.

        Raises:
            ConfigurationError: a setting, the database or a port is not as it must be.
        """
        if self._task is not None:
            raise MicrokitError(f"{self.name} runs already")
        self.health.reset()
        self.began = datetime.now(UTC)
        for event in (self._started, self._stopping, self.failed):
            event.clear()
        self.failure = None
        # One task lives as long as the instance, so that all it opens is closed by the task that opened it, and so that
        # the tasks it starts inherit whom they work for.
        own = contextvars.copy_context()
        own.run(_running.set, self)
        own.run(serving.set, self.name)
        self._task = asyncio.create_task(self._live(), name=f"{self.name} instance", context=own)
        started = asyncio.create_task(self._started.wait())
        await asyncio.wait({self._task, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if self._task.done():
            task, self._task = self._task, None
            task.result()

    async def pause(self) -> None:
        """Takes up no more events and saga steps, and waits for those under way; requests are still answered."""
        if self._parts is not None:
            self.health.state = State.DRAINING
            for worker in reversed(self._parts.workers):
                await worker.stop(self.settings.shutdown_timeout)

    async def stop(self) -> None:
        """Stops it; returns when everything is closed. A second time it does nothing."""
        task, self._task = self._task, None
        if task is None:
            return
        self._stopping.set()
        await task

    async def _live(self) -> None:
        try:
            await self._run()
        finally:
            self._parts = self._server = self._url = self.admin_url = None

    async def _run(self) -> None:
        async with AsyncExitStack() as owned:
            await self._open_admin(owned)
            assembly = Assembly(self.declared, self.settings, self.health, self._registry, owned, self._placement)
            self._parts = parts = await assembly.parts(self._shared_bus, self._ring)
            app = await assembly.web(parts)
            owned.push_async_callback(app.stop)
            await app.start()
            self._server = server = Server(
                app,
                self.settings.host,
                self.settings.port,
                limits=app.limits,
                websockets=bool(self.declared.mounts),
                listener=self._placement.listener if self._placement is not None else None,
            )
            try:
                await self._go(server, parts)
                self._started.set()
                await self._stay(parts)
            finally:
                await self._stop(server, parts)

    async def _open_admin(self, owned: AsyncExitStack) -> None:
        """First, and closed last: somebody wants to see how it starts and ends, too."""
        settings = self.settings
        if settings.admin_port is None and self._placement is None:
            return
        from microkit.admin import admin_app  # noqa: PLC0415  only where it is wanted

        # Of several workers, the one that looks after them has the admin port, and asks each on a socket of its own.
        listener = self._placement.admin if self._placement is not None else None
        loopback = listener is None and is_loopback(settings.admin_host)
        app = admin_app(self, loopback=loopback)
        server = Server(app, settings.admin_host, settings.admin_port or 0, listener=listener)
        try:
            await server.start()
        except ConfigurationError as error:
            raise ConfigurationError(f"{settings.origin.prefix}ADMIN_PORT: {error}") from None
        owned.push_async_callback(server.stop, _ADMIN_DRAIN)
        if listener is None:
            self.admin_url = server.url

    async def _stay(self, parts: Parts) -> None:
        """Returns when the instance is to stop."""
        if parts.consumers is not None:
            tasks = [asyncio.create_task(event.wait()) for event in (self._stopping, parts.consumers.failed)]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
            if parts.consumers.failure is not None:
                self.failure = parts.consumers.failure
                _log.critical("events are not handled any more: %s", self.failure)
                self.failed.set()
        await self._stopping.wait()

    async def _go(self, server: Server, parts: Parts) -> None:
        await server.start()
        self._url = server.url
        if parts.verifier is not None:
            parts.verifier.prepare()  # not sooner: the issuer may be this very service
        if parts.relay is not None:
            await parts.relay.start()
        for worker in parts.workers:
            await worker.start()
        self.health.state = State.READY
        _log.info("ready at %s", server.url)
        if isinstance(parts.resolver, Registrar) and self._placement is None:
            # Last: whoever finds it may call it at once.
            self._endpoint = own_endpoint(self.name, self.settings, server.url)
            await parts.resolver.register(self.name, self._endpoint)

    async def _stop(self, server: Server, parts: Parts) -> None:
        settings = self.settings
        # Balancers first: readiness says no, discovery forgets us, and only then do we wait, still serving, until
        # nobody sends anything any more.
        self.health.state = State.DRAINING
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None and isinstance(parts.resolver, Registrar):
            await parts.resolver.deregister(self.name, endpoint)
        server.drain()
        if self._started.is_set():
            await asyncio.sleep(settings.drain_delay)
        # Requests may publish events and start sagas: they end first. The relay ends last, because all others publish.
        await server.stop(settings.shutdown_timeout)
        for worker in reversed(parts.workers):
            await worker.stop(settings.shutdown_timeout)
        if parts.relay is not None:
            await parts.relay.stop(settings.shutdown_timeout)
        if self._placement is not None:
            await self._placement.last_words(parts.telemetry.exposition())
        self.health.state = State.STOPPED
        _log.info("stopped")
