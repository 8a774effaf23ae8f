"""Somebody who issues access tokens, for tests and for ``microkit up`` on one's own machine.

A service with ``allow="member"`` lets nobody in without a token. In production the tokens come from the company's
log-in; where that is not at hand, this service stands in for it::

    system = System("catalog", [service, dev_issuer(port=4301)], issuer="dev-issuer")

It gives **anybody any role**, so it listens on the loopback interface only and refuses to run in production.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator

from pydantic import Field, field_validator
from starlette.responses import JSONResponse, PlainTextResponse

from microkit.auth import Issuer, SigningKey
from microkit.contract import ANYONE, SERVICE
from microkit.errors import BadRequest, ConfigurationError
from microkit.service import Service
from microkit.settings import Duration, ServiceSettings


class DevIssuerSettings(ServiceSettings):
    """Those of every service, on this machine and in development only."""

    allowed_hosts: list[str] = Field(
        ["127.0.0.1", "localhost", "[::1]"],
        min_length=1,
        description="Host headers that are answered: no name that a web page could point at this machine",
    )
    access_lifetime: Duration = Field(600.0, ge=1, le=600, description="how long a token is good for")

    @field_validator("environment")
    @classmethod
    def _in_development(cls, value: str) -> str:
        if value == "production":
            raise ValueError("the development issuer gives anybody any role: production needs a real one")
        return value

    @field_validator("host")
    @classmethod
    def _on_this_machine(cls, value: str) -> str:
        if not _loopback(value):
            raise ValueError("the development issuer gives anybody any role: it listens on 127.0.0.1 or ::1 only")
        return value


def dev_issuer(name: str = "dev-issuer", *, port: int = 8099) -> Service:
    """The service. Name it as the system's ``issuer``; tests then have :meth:`SystemUnderTest.token`.

    - ``POST /tokens/{subject}?role=editor&role=member`` answers with an access token, as plain text.
    - ``GET /.well-known/jwks.json`` holds the key, which is made anew at each start.
    """
    service = Service(name, port=port, settings=DevIssuerSettings, title="Development issuer")
    service.resource(_issuer)
    service.get("/.well-known/jwks.json", allow=ANYONE)(_keys)
    service.post("/tokens/{subject}", allow=ANYONE)(_token)
    return service


async def _issuer(settings: DevIssuerSettings) -> AsyncIterator[Issuer]:
    if settings.auth_issuer is None or settings.auth_audience is None:
        raise ConfigurationError("the development issuer belongs into a system: System(..., issuer='dev-issuer')")
    yield Issuer(
        settings.auth_issuer,
        audience=settings.auth_audience,
        keys=[SigningKey.generate()],
        lifetime=settings.access_lifetime,
    )


async def _keys(issuer: Issuer) -> JSONResponse:
    return JSONResponse(issuer.jwks())


async def _token(subject: str, issuer: Issuer, role: list[str] | None = None) -> PlainTextResponse:
    roles = role or []
    if SERVICE in roles or subject.startswith("service:"):
        raise BadRequest("Services sign their own tokens; this one is for people")
    return PlainTextResponse(issuer.sign(subject, roles=roles).value, headers={"Cache-Control": "no-store"})


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
