"""How an instance is put together from what its service declared: the composition root."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Protocol, get_type_hints

import aiohttp

from microkit.auth import ServiceTokens, SigningKey, Verifier, verifier_for
from microkit.bus import Bus, ConsumerRuntime, Subscription, connect
from microkit.client import HttpCaller, open_session
from microkit.contract import ANYONE
from microkit.db import Database
from microkit.db.migration import create_tables, migrate, pending
from microkit.declared import Declared, Resource
from microkit.discovery.memory import MemoryRegistry
from microkit.discovery.port import Resolver
from microkit.discovery.static import StaticResolver
from microkit.errors import ConfigurationError, DefinitionError
from microkit.gateway import BoundGateway, Gateway
from microkit.listening import GroupHandler
from microkit.outbox import Relay, install
from microkit.saga import SagaEngine
from microkit.settings import ServiceSettings
from microkit.telemetry import Telemetry, TraceRing
from microkit.web import Health, Limits, Mount, Server, WebApp


class Worker(Protocol):
    """Something that works in the background while the instance is ready."""

    async def start(self) -> None: ...

    async def stop(self, timeout: float) -> None:  # noqa: ASYNC109  how long to drain, not a failure
        ...


@dataclass(slots=True)
class Parts:
    """What a running instance owns. ``workers`` are in their start order and stopped in the reverse."""

    telemetry: Telemetry
    database: Database | None
    bus: Bus | None
    resolver: Resolver
    session: aiohttp.ClientSession
    tokens: ServiceTokens | None
    verifier: Verifier | None
    call_timeout: float
    callers: dict[str, HttpCaller] = field(default_factory=dict)
    workers: list[Worker] = field(default_factory=list)
    resources: dict[Any, object] = field(default_factory=dict)

    def caller(self, service: str) -> HttpCaller:
        """What carries out the calls to a service, made once."""
        found = self.callers.get(service)
        if found is None:
            found = self.callers[service] = HttpCaller(
                service,
                resolver=self.resolver,
                session=self.session,
                telemetry=self.telemetry,
                tokens=self.tokens,
                timeout=self.call_timeout,
            )
        return found


class Assembly:
    """Opens one part after the other, each closed by ``owned`` in the reverse order."""

    def __init__(
        self,
        declared: Declared,
        settings: ServiceSettings,
        health: Health,
        registry: MemoryRegistry | None,
        owned: AsyncExitStack,
    ) -> None:
        self._declared = declared
        self._settings = settings
        self._health = health
        self._registry = registry
        self._owned = owned

    async def parts(self, bus: Bus | None, ring: TraceRing | None) -> Parts:
        """Everything below the web floor.

        Raises:
            ConfigurationError: a setting is wrong, or the database cannot be reached or is not migrated.
        """
        declared, settings = self._declared, self._settings
        telemetry = Telemetry(
            declared.name,
            version=declared.version,
            sampling=settings.trace_sampling,
            exporter=settings.trace_exporter,
            otlp_endpoint=settings.otlp_endpoint,
            ring=ring,
            log_level=settings.log_level,
        )
        self._owned.push_async_callback(telemetry.close)
        session = await self._owned.enter_async_context(open_session())
        verifier = verifier_for(
            issuer=settings.auth_issuer,
            audience=settings.auth_audience,
            jwks_url=settings.auth_jwks_url,
            service_keys=settings.auth_service_keys,
            session=session,
        )
        if verifier is not None:
            self._owned.push_async_callback(verifier.close)
        parts = Parts(
            telemetry=telemetry,
            database=await self._database(telemetry) if declared.stores else None,
            bus=await self._bus(bus) if declared.stores else None,
            resolver=self._registry or StaticResolver(settings.services),
            session=session,
            tokens=self._tokens(),
            verifier=verifier,
            call_timeout=settings.request_timeout,
        )
        await self._resources(parts)
        self._workers(parts)
        return parts

    async def _database(self, telemetry: Telemetry) -> Database:
        declared, settings = self._declared, self._settings
        database = Database(
            settings.database_url.get_secret_value(),
            telemetry=telemetry,
            pool_size=settings.database_pool_size,
            max_overflow=settings.database_max_overflow,
            pool_timeout=settings.database_pool_timeout,
            statement_timeout=settings.database_statement_timeout,
            tables=declared.tables,
        )
        self._owned.push_async_callback(database.close)
        await database.start()
        if settings.migrate_on_start:
            await migrate(database, declared.migrations)
        elif waiting := await pending(database, declared.migrations):
            raise ConfigurationError(
                f"the database of {declared.name} misses {len(waiting)} migrations (the next: {waiting[0]}); "
                f"run `microkit migrate {declared.name}` first"
            )
        if declared.migrations is None and declared.tables is not None:
            if settings.environment == "production":
                raise ConfigurationError(
                    f"{declared.name} has tables and no migrations: in production no table is made silently. "
                    "Give Service(...) migrations=, the folder with its Alembic versions"
                )
            await create_tables(database, declared.tables)
        return database

    async def _bus(self, shared: Bus | None) -> Bus:
        if shared is not None:
            return shared
        bus = connect(self._settings.bus_url)
        self._owned.push_async_callback(bus.close)
        await bus.start()
        return bus

    def _tokens(self) -> ServiceTokens | None:
        settings = self._settings
        if settings.auth_service_key is None:
            return None
        if not settings.auth_audience:
            raise ConfigurationError("auth_audience is missing: name whom access tokens must be for, such as billpay")
        key = SigningKey.read(settings.auth_service_key.get_secret_value())
        return ServiceTokens(self._declared.name, key, settings.auth_audience)

    async def _resources(self, parts: Parts) -> None:
        offered = parts.resources
        offered[type(self._settings)] = offered[ServiceSettings] = self._settings
        offered[Telemetry] = parts.telemetry
        offered[aiohttp.ClientSession] = parts.session
        if parts.database is not None:
            offered[Database] = parts.database
        for contract in self._declared.clients:
            offered[contract] = contract(parts.caller(contract.contract_service))
        for resource in self._declared.resources:
            offered[resource.kind] = await self._owned.enter_async_context(_opened(resource, offered))

    def _workers(self, parts: Parts) -> None:
        declared = self._declared
        if parts.database is None or parts.bus is None:
            return
        install(parts.database, declared.name)
        relay = Relay(parts.database, parts.bus, parts.telemetry, source=declared.name)
        consumers = ConsumerRuntime(parts.bus, parts.telemetry)
        listeners = sorted(declared.listeners, key=lambda listener: listener.group)
        for group, members in groupby(listeners, key=lambda listener: listener.group):
            found = list(members)
            topics = tuple(sorted({listener.event.event_topic for listener in found}))
            consumers.add(Subscription(group, topics, GroupHandler(found, parts.resources, parts.database)))
        # Stopped in the reverse order: consumers and sagas publish, so the relay ends last and flushes.
        parts.workers.append(relay)
        if declared.sagas:
            parts.workers.append(SagaEngine(parts.database, parts.telemetry, declared.sagas, parts.resources))
        parts.workers.append(consumers)

    async def web(self, parts: Parts) -> WebApp:
        """The HTTP floor on top of the parts.

        Raises:
            DefinitionError: a handler's parameters cannot be bound.
            ConfigurationError: an operation asks for a token and nothing can verify one.
        """
        declared, settings = self._declared, self._settings
        declared.check()
        self._check_access(parts.verifier)
        return WebApp(
            service=declared.name,
            title=declared.title,
            version=declared.version,
            operations=list(declared.handlers.items()),
            routes=declared.routes,
            mounts=[await self._mount(mount, parts) for mount in declared.mounts],
            telemetry=parts.telemetry,
            verify=parts.verifier.verify if parts.verifier is not None else None,
            database=parts.database,
            resources=parts.resources,
            limits=Limits(body=settings.body_limit, timeout=settings.request_timeout),
            health=self._health,
            allowed_hosts=settings.allowed_hosts,
            environment=settings.environment,
        )
