"""How an instance is put together from what its service declared: the composition root."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, cast, get_type_hints
from urllib.parse import urlsplit

import aiohttp
from starlette.types import ASGIApp

from microkit.asyncapi import document
from microkit.auth import ServiceTokens, SigningKey, Verifier, verifier_for
from microkit.bus.connect import connect, started
from microkit.bus.consumer import ConsumerRuntime
from microkit.bus.port import Bus
from microkit.choreography import ProcessKeeper, ProcessMetrics
from microkit.client import open_session
from microkit.contract import ANYONE
from microkit.db import Database
from microkit.db.facts import server_facts
from microkit.db.migration import create_tables, prepare
from microkit.db.opening import preparing
from microkit.declared import Declared, Mounted
from microkit.discovery.memory import MemoryRegistry
from microkit.discovery.own import discovery_of
from microkit.discovery.port import Discovery, Resolver
from microkit.errors import ConfigurationError, DefinitionError
from microkit.fronting import RoutesFile, auth_route, cache_store, inline_routes, own_document, setting_of
from microkit.gateway import BoundGateway, Gateway
from microkit.lifespan import lifespan_of
from microkit.lifetime import Lifetime
from microkit.listening import subscription_of
from microkit.outbox import Relay, RelayOptions, burial, install
from microkit.parts import Parts
from microkit.placement import Placement
from microkit.pooling import pool_options, share_of
from microkit.probes import answering, clients_probe, consumer_probe, discovery_probe, relay_probe, saga_probe
from microkit.production import refusals
from microkit.proxies import ClientAddress, Proxies
from microkit.resilience.breaker import Breaker
from microkit.resilience.rate import RateLimiter
from microkit.resilience.rate import connect as rate_limiter
from microkit.saga import SagaEngine, SagaRetention
from microkit.saga.replies import Replies
from microkit.settings import ServiceSettings
from microkit.telemetry import Telemetry, TraceRing
from microkit.web import Health, InlineRoute, Limits, Mount, Surface, WebApp

SAGA_LEASE: Final = 10.0
"""Seconds after which a saga whose process died goes on elsewhere."""


class Assembly:
    """Opens one part after the other, each closed by ``owned`` in the reverse order."""

    def __init__(
        self,
        declared: Declared,
        settings: ServiceSettings,
        health: Health,
        registry: MemoryRegistry | None,
        owned: AsyncExitStack,
        placement: Placement | None = None,
    ) -> None:
        self._declared = declared
        self._settings = settings
        self._health = health
        self._registry = registry
        self._owned = owned
        self._placement = placement

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
        limiter = rate_limiter(settings.rate_limit_url.get_secret_value())
        self._owned.push_async_callback(limiter.close)
        parts = Parts(
            telemetry=telemetry,
            limiter=limiter,
            database=await self._database(telemetry) if declared.stores else None,
            bus=await self._bus(bus) if declared.stores else None,
            resolver=self._discovery(telemetry),
            session=session,
            tokens=self._tokens(),
            verifier=verifier,
            settings=settings,
        )
        await self._resources(parts)
        self._share_breakers(parts)
        self._workers(parts)
        return parts

    def _discovery(self, telemetry: Telemetry) -> Discovery:
        if self._registry is not None:
            discovery: Discovery = self._registry
        else:
            discovery = discovery_of(self._settings, telemetry)
            self._owned.push_async_callback(discovery.close)
        self._health.part("discovery", discovery_probe(discovery), critical=False)
        return discovery

    async def _database(self, telemetry: Telemetry) -> Database:
        declared, settings = self._declared, self._settings
        for refusal in refusals(declared, settings):
            raise ConfigurationError(refusal)
        database = Database(
            settings.database_url.get_secret_value(),
            telemetry=telemetry,
            pool_size=settings.database_pool_size,
            max_overflow=settings.database_max_overflow,
            pool_timeout=settings.database_pool_timeout,
            statement_timeout=settings.database_statement_timeout,
            tables=declared.tables,
            options=pool_options(settings),
        )
        self._owned.push_async_callback(database.close)
        install(database, declared.name)  # before resources, which may write and publish while they start
        await database.start()
        await self._check_server(database, telemetry)
        with preparing(database.where):
            await self._prepare(database, telemetry)
        return database

    async def _prepare(self, database: Database, telemetry: Telemetry) -> None:
        declared, settings = self._declared, self._settings
        run, logger = settings.migrate_on_start, telemetry.logger
        await prepare(database, declared.migrations, service=declared.name, run=run, logger=logger)
        if declared.migrations is None and declared.tables is not None:
            await create_tables(database, declared.tables)

    async def _check_server(self, database: Database, telemetry: Telemetry) -> None:
        """That the server will do; and a word where there may come to be more connections than it has."""
        facts = await server_facts(database)
        prefix = self._settings.origin.prefix
        if facts.trouble is not None:
            raise ConfigurationError(f"{prefix}DATABASE_URL: {facts.trouble}")
        if misfit := share_of(self._settings).misfit(facts.connections):
            telemetry.logger.warning("%sDATABASE_POOL_SIZE: %s", prefix, misfit)

    async def _bus(self, shared: Bus | None) -> Bus:
        if shared is not None:
            return shared
        url = self._settings.bus_url.get_secret_value()
        bus = connect(url)
        self._owned.push_async_callback(bus.close)
        await started(bus, url)
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
        offered[Resolver] = parts.resolver
        offered[RateLimiter] = parts.limiter
        if parts.database is not None:
            offered[Database] = parts.database
        if self._declared.clients:
            self._health.part("clients", clients_probe(parts.upstreams), critical=False)
        for contract in self._declared.clients:
            service = contract.contract_service
            parts.policies(service).check([c for c in self._declared.clients if c.contract_service == service])
            offered[contract] = contract(parts.caller(contract.contract_service))
        for resource in self._declared.resources:
            if resource.kind in offered:
                raise DefinitionError(
                    f"{self._declared.name} offers two resources of the type {resource.kind.__name__}"
                )
            lifetime = Lifetime(resource, offered, patience=self._settings.shutdown_timeout)
            offered[resource.kind] = await self._owned.enter_async_context(lifetime)

    def _share_breakers(self, parts: Parts) -> None:
        url = self._settings.breaker_state_url
        if url is None or not self._declared.clients:
            return
        from microkit.resilience.shared import SharedBreakers  # noqa: PLC0415  an extra

        upstreams = parts.upstreams

        def breakers() -> list[Breaker]:
            return [breaker for upstream in upstreams.values() for breaker in upstream.breakers()]

        parts.workers.append(SharedBreakers(url.get_secret_value(), self._declared.name, breakers))

    def _workers(self, parts: Parts) -> None:
        declared, health = self._declared, self._health
        database, bus = parts.database, parts.bus
        if database is None or bus is None:
            return
        health.part("database", answering(database.ping))
        health.part("bus", answering(bus.ping), critical=False)
        options = RelayOptions(keep_inbox=self._settings.inbox_retention)
        relay = Relay(database, bus, parts.telemetry, source=declared.name, options=options)
        health.part("relay", relay_probe(relay), critical=False)
        parts.relay = relay
        if declared.sagas:
            engine = SagaEngine(database, parts.telemetry, declared.sagas, parts.resources, lease=SAGA_LEASE)
            health.part("sagas", saga_probe(engine), critical=False)
            parts.workers += [engine, SagaRetention(database, parts.telemetry, keep=self._settings.saga_retention)]
        if declared.processes:
            metrics = parts.resources[ProcessMetrics] = ProcessMetrics(parts.telemetry)
            keep = self._settings.saga_retention
            parts.workers.append(ProcessKeeper(database, parts.telemetry, declared.processes, metrics, keep=keep))
        if declared.heard():
            parts.consumers = consumers = self._consumers(database, bus, parts)
            health.part("consumers", consumer_probe(consumers), critical=False, liveness=True)
            parts.workers.append(consumers)

    def _consumers(self, database: Database, bus: Bus, parts: Parts) -> ConsumerRuntime:
        consumers = ConsumerRuntime(bus, parts.telemetry, bury=burial(database, bus))
        resources = {**parts.resources, Replies: Replies(parts.telemetry)}
        for group, listeners in self._declared.groups().items():
            consumers.add(subscription_of(group, listeners, resources, database))
        return consumers

    async def web(self, parts: Parts) -> WebApp:
        """The HTTP floor on top of the parts.

        Raises:
            DefinitionError: a handler's parameters cannot be bound.
            ConfigurationError: an operation asks for a token and nothing can verify one.
        """
        declared, settings = self._declared, self._settings
        declared.check()
        self._check_access(parts.verifier)
        routes = list(declared.routes)
        surface = Surface(
            service=declared.name,
            title=declared.title,
            version=declared.version,
            operations=list(declared.handlers.items()),
            routes=routes,
            mounts=[await self._mount(mounted, parts, routes) for mounted in declared.mounts],
            internals=self._exposes_internals(),
            limits=declared.rate_limits(settings),
            metrics=self._placement.metrics if self._placement is not None else None,
            ready=self._placement.ready if self._placement is not None else None,
            asyncapi=self._events() if declared.sent() or declared.heard() else None,
        )
        return WebApp(
            surface,
            telemetry=parts.telemetry,
            verify=parts.verifier.verify if parts.verifier is not None else None,
            database=parts.database,
            resources={ClientAddress: self._proxies(parts.telemetry), **parts.resources},
            limits=Limits(
                body=settings.body_limit,
                timeout=settings.request_timeout,
                connections=settings.max_connections,
                concurrency=settings.max_concurrency,
                queue=settings.queue_patience,
                shedding=settings.load_shedding,
                allowed_hosts=self._hosts(),
            ),
            health=self._health,
            access_log=settings.access_log,
        )

    def _hosts(self) -> tuple[str, ...]:
        """Who finds the instance through the registry calls it by the name that it gave there."""
        settings = self._settings
        advertised = urlsplit(settings.advertised_url).hostname if settings.advertised_url else None
        return (
            *settings.allowed_hosts,
            *([f"[{advertised}]" if ":" in advertised else advertised] if advertised else []),
        )

    def _exposes_internals(self) -> bool:
        if self._settings.expose_internals is not None:
            return self._settings.expose_internals
        gateway = any(isinstance(mounted.app, Gateway) for mounted in self._declared.mounts)
        return not (gateway and self._settings.environment == "production")

    def _events(self) -> Callable[[], Mapping[str, Any]]:
        """Without the broker's address, which is nobody's business who can reach the service."""
        declared = self._declared
        return lambda: document([declared], title=declared.title, version=declared.version)

    def _proxies(self, telemetry: Telemetry) -> Proxies:
        """Who is believed about a client's address. In production somebody should be, where handlers ask for it."""
        declared, settings = self._declared, self._settings
        handlers = [*declared.handlers.values(), *(route.handler for route in declared.routes)]
        asked = any(ClientAddress in get_type_hints(handler).values() for handler in handlers)
        if asked and settings.environment == "production" and not settings.trusted_proxies:
            telemetry.logger.warning(
                "%sTRUSTED_PROXIES is empty: behind a gateway all clients seem to have its address. Name the gateway's "
                "network, such as 10.0.0.0/8; where clients connect directly, 127.0.0.1",
                settings.origin.prefix,
            )
        return Proxies(settings.trusted_proxies)

    async def _mount(self, mounted: Mounted, parts: Parts, routes: list[InlineRoute]) -> Mount:
        app: ASGIApp
        if isinstance(mounted.app, Gateway):
            app = await self._gateway(mounted.app, parts, routes)
        else:
            app = mounted.app
            await self._owned.enter_async_context(lifespan_of(app, mounted.path))
        return Mount(mounted.path, app, mounted.allow)

    async def _gateway(self, gateway: Gateway, parts: Parts, routes: list[InlineRoute]) -> BoundGateway:
        settings = self._settings
        bound = await gateway.bind(
            telemetry=parts.telemetry,
            verify=parts.verifier.verify if parts.verifier is not None else None,
            resolver=parts.resolver,
            upstream=parts.upstream,
            trusted_proxies=settings.trusted_proxies,
            limiter=cast("RateLimiter", parts.resources[RateLimiter]),
            cache=cache_store(settings.cache_url.get_secret_value()),
            setting=setting_of(settings),
            own=own_document(self._declared, {ClientAddress: None, **parts.resources}),
        )
        self._owned.push_async_callback(bound.close)
        if settings.routes_file is not None:
            file = RoutesFile(Path(settings.routes_file), bound, parts.telemetry)
            file.load()
            parts.workers.append(file)
            self._health.part("routes", answering(file.probe), critical=False)
        for name, ping in bound.health_parts().items():
            self._health.part(name, answering(ping), critical=False)
        routes += inline_routes(bound, internals=self._exposes_internals())
        if settings.auth_endpoint:
            routes.append(auth_route(parts.verifier.verify if parts.verifier is not None else None))
        return bound

    def _check_access(self, verifier: Verifier | None) -> None:
        guarded = [operation.qualified_name for operation in self._declared.handlers if ANYONE not in operation.allow]
        guarded += [f"{route.method} {route.path}" for route in self._declared.routes if ANYONE not in route.allow]
        guarded += [mount.path for mount in self._declared.mounts if ANYONE not in mount.allow]
        if guarded and verifier is None:
            prefix = self._declared.name.upper().replace("-", "_")
            raise ConfigurationError(
                f"{guarded[0]} lets nobody in without a token, and nothing says who issues tokens: set "
                f"{prefix}_AUTH_ISSUER, {prefix}_AUTH_JWKS_URL and {prefix}_AUTH_AUDIENCE, such as "
                f"https://user.example, https://user.example/.well-known/jwks.json and {self._declared.name}"
            )
