"""What every service can be told, and what of it is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from annotated_types import MinLen
from pydantic import BeforeValidator, Field, PrivateAttr, SecretBytes, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from microkit.redaction import shown
from microkit.settings.clients import Clients
from microkit.settings.quantities import Duration, Size
from microkit.settings.values import (
    SHORTEST_SECRET,
    SecretUrl,
    base_url,
    endpoints,
    host_name,
    http_url,
    is_loopback,
    named_limits,
    network,
    refuse_weak,
    upper,
)

Timeout = Annotated[Duration, Field(gt=0)]
Word = Annotated[str, Field(min_length=1)]
LogLevel = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(upper)]
Endpoints = Annotated[dict[Word, Annotated[list[Word], Field(min_length=1)]], BeforeValidator(endpoints)]
RateLimits = Annotated[dict[Word, Word], BeforeValidator(named_limits)]


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose settings they are, and which fields were given where (``environment``, ``.env`` …)."""

    service: str = "service"
    places: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """The variable of a field: ``BILLING_DATABASE_URL``."""
        return f"{self.prefix}{name}".upper()

    @property
    def prefix(self) -> str:
        """``BILLING_``"""
        return f"{self.service.upper().replace('-', '_')}_"


class ServiceSettings(BaseSettings):
    """What every service can be told. A service adds its own by subclassing::

        class PaymentSettings(ServiceSettings):
            horizon_url: str = Field("http://127.0.0.1:3100", description="Where Horizon is.")
            wallet_key: SecretStr

    Made by :func:`load`; made directly it takes its arguments and reads nothing from anywhere. A ``SecretStr`` must
    have 16 characters and be no placeholder, each one of a list too; a field that allows shorter ones says so with its
    own ``min_length``. What ``examples`` and ``description`` say is part of the messages; a rule about several settings
    (a ``model_validator``) writes their field names, which are told as the keys of the environment.
    """

    model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)

    environment: Literal["development", "production"] = Field(
        "development", description="production refuses what is only safe on a laptop"
    )
    host: Word = Field("127.0.0.1", description="address to listen on", examples=["0.0.0.0"])  # noqa: S104  an example
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    workers: int = Field(
        1, ge=1, le=64, description="processes on that port, of `microkit run`; each has its pool, and its own limits"
    )
    worker_timeout: Duration = Field(
        30.0, description="a worker of several that answers nothing for so long is killed; 0 waits forever"
    )

    admin_port: int | None = Field(
        None, ge=0, le=65535, description="port of the admin endpoints; 0 takes a free one, unset: there are none"
    )
    admin_exposed: bool = Field(
        False,
        description="the admin endpoints may listen beyond the loopback in production: a network policy guards them",
    )
    admin_host: Word = Field(
        "127.0.0.1", description="address of the admin endpoints, which have no log-in", examples=["10.0.0.5"]
    )

    database_url: SecretUrl = Field(
        SecretUrl("sqlite+aiosqlite:///.microkit/service.db"),
        description="where the service's own database is",
        examples=["postgresql+asyncpg://billing:...@db/billing"],
    )
    database_pool_size: int = Field(10, ge=1, le=1000, description="connections kept open")
    database_max_overflow: int = Field(5, ge=0, le=1000, description="connections opened above that under load")
    database_pool_timeout: Timeout = Field(5.0, description="longest wait for a connection")
    database_statement_timeout: Timeout = Field(30.0, description="longest a statement may run")
    database_recycle: Duration = Field(
        1800.0, description="age at which a connection is opened anew; 0 keeps it for good", examples=["10m"]
    )
    database_pre_ping: bool = Field(
        False, description="ask each connection for an answer before it is lent: a round trip for each transaction"
    )
    database_pgbouncer: bool = Field(
        False, description="a pooler that lends connections by the transaction stands before PostgreSQL"
    )
    database_replica_url: SecretUrl | None = Field(
        None,
        description="a copy of the database, for the transactions of operations that only read; the primary stands in",
        examples=["postgresql+asyncpg://billing:...@replica/billing"],
    )
    database_leak_after: Duration = Field(
        60.0, description="a connection held longer than this is logged with its holder's stack; 0 never"
    )
    replicas: int = Field(
        1,
        ge=1,
        le=100_000,
        description="instances of this service that run at once, on all hosts, each with its workers: what their "
        "pools may take is compared with what the database allows",
    )
    migrate_on_start: bool = Field(False, description="bring the database's schema up to date at start")

    bus_url: SecretUrl = Field(SecretUrl("memory://"), description="where events go", examples=["redis://redis:6379/0"])

    inbox_retention: Duration = Field(
        14 * 86_400.0,
        ge=3600,
        description="how long it is remembered that an event was handled; longer than the bus keeps events and than "
        "any replay goes back",
        examples=["30d"],
    )
    saga_retention: Duration = Field(
        30 * 86_400.0,
        description="how long a saga that ended, and a process that is silent, is kept",
        examples=["30d"],
    )

    request_timeout: Timeout = Field(10.0, description="longest a request may take")
    body_limit: Size = Field(1024 * 1024, ge=1, description="largest request body")
    allowed_hosts: list[Word] = Field(
        ["*"], min_length=1, description="Host headers that are answered", examples=["billing.example.com,*.internal"]
    )
    max_connections: int = Field(10_000, ge=1, description="connections open at once; those beyond are closed with 503")
    max_concurrency: int = Field(
        1000, ge=1, description="requests worked on at once at most; under load it shrinks by itself"
    )
    queue_patience: Duration = Field(
        1.0, description="longest wait of a request for its turn in a burst; under load it is shorter"
    )
    load_shedding: bool = Field(True, description="answer 503 at once to what cannot be done in time")
    rate_limits: RateLimits = Field(
        default_factory=dict,
        description="how often an operation may be called, over what its service says; off takes a limit away",
        examples=["Billing.create=10/60s;Billing.read=100/s burst=200 by=address"],
    )
    rate_limit_url: SecretUrl = Field(
        SecretUrl("memory://"),
        description="what counts for rate limits; memory:// counts in each instance for itself",
        examples=["redis://redis:6379/0"],
    )
    cache_url: SecretUrl = Field(
        SecretUrl("memory://"),
        description="where a gateway keeps answers; memory:// keeps them in each instance",
        examples=["redis://redis:6379/1"],
    )
    routes_file: Word | None = Field(
        None,
        description="a gateway's routes, TOML or JSON, in the place of those in its code; read again when it changes",
        examples=["/etc/billpay/routes.toml"],
    )
    auth_endpoint: bool = Field(
        False, description="whether a gateway answers /internal/auth, where a proxy in front of it asks who calls"
    )
    trusted_proxies: list[Word] = Field(
        [],
        description="addresses or networks of the gateway and of proxies, whose X-Forwarded-For is believed; "
        "where it is empty, the connection's own address is taken for the client's",
        examples=["10.0.0.0/8"],
    )
    drain_delay: Duration = Field(0.0, description="wait between not ready and closing, for balancers to notice")
    shutdown_timeout: Timeout = Field(20.0, description="longest wait for work under way at the end")

    log_level: LogLevel = Field("INFO", description="least severe line that is written")
    log_format: Literal["json", "console"] = Field("json", description="json for machines, console for people")
    access_log: bool = Field(True, description="one line for each request")
    expose_internals: bool | None = Field(
        None,
        description="whether this port serves /metrics and the parts in /health; "
        "unset: everywhere but on a gateway in production, which the outside reaches",
    )
    trace_sampling: float = Field(
        1.0, ge=0, le=1, allow_inf_nan=False, description="share of new traces that is recorded", examples=["0.1"]
    )
    trace_exporter: Literal["memory", "otlp", "none"] = Field("memory", description="where spans go")
    otlp_endpoint: Word | None = Field(None, description="the collector", examples=["http://collector:4318"])

    auth_issuer: Word | None = Field(
        None, description="iss of the access tokens that are accepted", examples=["https://login.example.com"]
    )
    auth_audience: Word | None = Field(None, description="aud that they must have", examples=["billpay"])
    auth_jwks_url: Word | None = Field(
        None, description="where the issuer's keys are", examples=["http://user:3001/.well-known/jwks.json"]
    )
    auth_service_keys: Word | None = Field(
        None, description="public keys of the system's services: a JWKS file or its JSON", examples=["services.jwks"]
    )
    auth_service_key: SecretStr | None = Field(
        None, min_length=1, description="own private key: a JWK file or its JSON", examples=["/run/secrets/billing.jwk"]
    )
    discovery_url: SecretUrl = Field(
        SecretUrl("static://"),
        description="how other services are found, and this one by them; static:// is what services= says",
        examples=["consul://127.0.0.1:8500"],
    )
    discovery_max_staleness: Annotated[Duration, Field(ge=1)] = Field(
        3600.0,
        description="how long instances are called that the registry no longer confirms, because it is away or empty",
        examples=["15m"],
    )
    advertised_url: Word | None = Field(
        None, description="where others reach this instance", examples=["http://10.0.0.5:3003"]
    )
    instance_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")] | None = Field(
        None, description="what tells this instance from the service's others; unset: from where it is reached"
    )
    zone: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,63}$")] | None = Field(
        None, description="where this instance runs; calls prefer their own zone", examples=["eu-west-1a"]
    )
    tags: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9._=:/-]{1,63}$")]] = Field(
        [], description="what this instance is found by beside its service's name", examples=["v2,canary"]
    )
    weight: int = Field(1, ge=0, le=100, description="this instance's share of the calls beside the others'")
    services: Endpoints = Field(
        default_factory=dict,
        description="where other services are, for static://",
        examples=["user=http://10.0.0.5:3001,http://10.0.0.6:3001;payment=http://10.0.0.7:3002"],
    )
    clients: Clients = Field(
        default_factory=dict,
        description="how other services are called, by service, default for all; written "
        "…_CLIENTS__BILLING__TIMEOUT=2s, and …_CLIENTS__BILLING__OPERATIONS__READ__TIMEOUT=1s for an operation",
        examples=['{"default": {"timeout": "5s"}, "billing": {"attempts": 2}}'],
    )
    breaker_state_url: SecretUrl | None = Field(
        None,
        description="where the instances of this service share what they know of failing neighbours; unset: nowhere",
        examples=["redis://redis:6379/0"],
    )

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @property
    def origin(self) -> Origin:
        return self._origin

    def given_by(self, origin: Origin) -> None:
        """Notes where the values came from, for :func:`describe`."""
        self._origin = origin

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, info in type(self).model_fields.items():
            if info.repr:
                yield name, shown(name, getattr(self, name))

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any, info: ValidationInfo) -> Any:
        """``BILLING_OTLP_ENDPOINT=`` says none, where none is allowed; elsewhere an empty text is no value."""
        optional = NoneType in get_args(cls.model_fields[info.field_name or ""].annotation)
        return None if value == "" and optional else value

    @field_validator("*", mode="after")
    @classmethod
    def _no_weak_secret(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, list | tuple | set | frozenset):
            for one in value:
                if isinstance(one, SecretStr | SecretBytes):
                    refuse_weak(one.get_secret_value(), SHORTEST_SECRET)
        elif isinstance(value, SecretStr | SecretBytes):
            own_rule = any(isinstance(rule, MinLen) for rule in cls.model_fields[info.field_name or ""].metadata)
            refuse_weak(value.get_secret_value(), SHORTEST_SECRET if not own_rule else 0)
        elif isinstance(value, SecretUrl):
            if not re.match(r"[a-z][a-z0-9+.-]*://", value.get_secret_value()):
                raise ValueError("is no URL")
            if value.password is not None and info.data.get("environment") == "production":
                refuse_weak(value.password, 0)
        return value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: SecretUrl) -> SecretUrl:
        scheme = value.get_secret_value().partition(":")[0]
        if scheme not in {"sqlite+aiosqlite", "postgresql+asyncpg"}:
            raise ValueError("begins with sqlite+aiosqlite:// or postgresql+asyncpg://")
        return value

    @field_validator("database_replica_url")
    @classmethod
    def _replica_of_postgresql(cls, value: SecretUrl | None) -> SecretUrl | None:
        if value is not None and value.get_secret_value().partition(":")[0] != "postgresql+asyncpg":
            raise ValueError("begins with postgresql+asyncpg://")
        return value

    @field_validator("admin_host")
    @classmethod
    def _guarded_admin(cls, value: str, info: ValidationInfo) -> str:
        if is_loopback(value) or info.data.get("environment") != "production" or info.data.get("admin_exposed"):
            return value
        raise ValueError(
            "is not the loopback, and the admin endpoints have no log-in: in production say admin_exposed=true as well "
            "where a network policy lets only your monitoring reach them"
        )

    @field_validator("allowed_hosts")
    @classmethod
    def _real_hosts(cls, value: list[str], info: ValidationInfo) -> list[str]:
        for host in value:
            host_name(host)
        if "*" in value and info.data.get("environment") == "production":
            raise ValueError("'*' answers to any Host header: production needs the names under which it is reached")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _known_proxies(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if "*" in value and info.data.get("environment") == "production":
            raise ValueError("'*' lets any client choose its own address: production needs the proxies' networks")
        for proxy in value:
            if proxy != "*":
                network(proxy)
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _endpoint_for_otlp(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("trace_exporter") == "otlp":
            raise ValueError("is needed when trace_exporter is otlp")
        return http_url(value)

    @field_validator("auth_audience")
    @classmethod
    def _audience_of_issuer(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("auth_issuer") is not None:
            raise ValueError("is needed when auth_issuer is set: a token for somebody else must not be accepted")
        return value

    @field_validator("auth_jwks_url")
    @classmethod
    def _jwks_url(cls, value: str | None) -> str | None:
        return http_url(value)

    @field_validator("advertised_url")
    @classmethod
    def _base_url(cls, value: str | None) -> str | None:
        return base_url(value)

    @field_validator("breaker_state_url")
    @classmethod
    def _known_store(cls, value: SecretUrl | None) -> SecretUrl | None:
        if value is not None and value.get_secret_value().partition(":")[0] not in {"redis", "rediss"}:
            raise ValueError("begins with redis:// or rediss://")
        return value

    @field_validator("services")
    @classmethod
    def _service_urls(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        for urls in value.values():
            for url in urls:
                http_url(url)
        return value
