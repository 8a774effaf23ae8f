"""What a Consul agent remembers: services, their checks, keys, and the index that every write raises.

Followed from Consul's HTTP API documentation (agent/service, agent/check, health, kv, features/blocking).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

Status = Literal["passing", "warning", "critical"]

SHORTEST_DEREGISTER_AFTER: Final = 60.0
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = re.compile(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)")


class Refused(Exception):
    """A request that Consul answers with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def go_duration(text: object, name: str) -> float:
    """``1m30s`` in seconds, as Go reads it; a bare number is nanoseconds in JSON."""
    if isinstance(text, int):
        return text / 1e9
    parts = _PART.findall(text) if isinstance(text, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise Refused(400, f"Invalid {name}")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


@dataclass(slots=True)
class Check:
    """One check of one service; times are readings of the agent's clock."""

    check_id: str
    name: str
    status: Status
    ttl: float | None = None
    http: str | None = None
    interval: float = 0.0
    deregister_after: float | None = None
    output: str = ""
    refreshed: float = 0.0
    critical_since: float | None = None


@dataclass(slots=True)
class Service:
    """One registration."""

    service_id: str
    name: str
    address: str
    port: int
    tags: list[str]
    meta: dict[str, str]
    weights: dict[str, int]
    checks: dict[str, Check] = field(default_factory=dict)
    index: int = 0

    @property
    def passing(self) -> bool:
        return all(check.status == "passing" for check in self.checks.values())


def _fields(value: object) -> dict[str, Any]:
    """Keys without case and underscores: Consul takes ``DeregisterCriticalServiceAfter``, ``deregister_critical_…``."""
    if not isinstance(value, dict):
        raise Refused(400, "Request decode failed: not an object")
    return {key.lower().replace("_", ""): inner for key, inner in value.items()}


class Agent:
    """The state of one agent, which is its whole cluster as well."""

    def __init__(self, index: int = 1) -> None:
        self.index = index
        self.services: dict[str, Service] = {}
        self.keys: dict[str, dict[str, Any]] = {}
        self.extinction = index
        self.names: dict[str, int] = {}
        """The index of each service by name: a change of any of its instances raises it, a removal too."""
        self._ahead = 0.0
        self._changed = asyncio.Event()

    @property
    def now(self) -> float:
        """Seconds; :meth:`advance` moves it."""
        return time.monotonic() + self._ahead

    def advance(self, seconds: float) -> None:
        """Lets time pass for TTLs and the reaper."""
        self._ahead += seconds
        self.expire()

    def wrote(self) -> int:
        """Raises the index, and wakes whoever waits for it."""
        self.index += 1
        self._changed.set()
        self._changed = asyncio.Event()
        return self.index

    async def change(self) -> None:
        """Waits for the next write."""
        await self._changed.wait()

    def register(self, body: bytes, *, replace_checks: bool) -> None:
        """``PUT /v1/agent/service/register``"""
        try:
            given = _fields(json.loads(body))
        except ValueError as error:
            raise Refused(400, f"Request decode failed: {error}") from None
        name = given.get("name") or ""
        if not name:
            raise Refused(400, "Missing service name")
        weights = {"Passing": 1, "Warning": 1}
        if given.get("weights"):
            found = _fields(given["weights"])
            weights = {"Passing": found.get("passing", 0), "Warning": found.get("warning", 0)}
            if weights["Passing"] < 1 or weights["Warning"] < 0:
                raise Refused(400, "Invalid Weights: Passing must be greater than 0")
        service_id = given.get("id") or name
        checks = [*([given["check"]] if given.get("check") else []), *(given.get("checks") or [])]
        service = Service(
            service_id, name, given.get("address") or "", given.get("port") or 0, given.get("tags") or [],
            given.get("meta") or {}, weights,
        )  # fmt: skip
        for number, check in enumerate(checks, 1):
            made = self._check(_fields(check), service, number if len(checks) > 1 else 0)
            service.checks[made.check_id] = made
        if (former := self.services.get(service_id)) is not None and not replace_checks:
            service.checks = {**former.checks, **service.checks}
        self.services[service_id] = service
        self._changed_service(service)

    def _check(self, given: Mapping[str, Any], service: Service, number: int) -> Check:
        check_id = given.get("checkid") or f"service:{service.service_id}{f':{number}' if number else ''}"
        status = given.get("status") or "critical"
        if status not in ("passing", "warning", "critical"):
            raise Refused(400, f"Invalid check: Status must be passing, warning or critical, not {status!r}")
        name = given.get("name") or f"Service '{service.name}' check"
        check = Check(check_id, name, cast("Status", status), refreshed=self.now)
        if given.get("ttl"):
            check.ttl = go_duration(given["ttl"], "TTL")
        check.http = given.get("http")
        if check.http:
            if not given.get("interval"):
                raise Refused(400, "Invalid check: Interval must be > 0 for Script, HTTP, or TCP checks")
            check.interval = go_duration(given["interval"], "Interval")
        if (check.ttl is None) == (check.http is None):
            raise Refused(400, "Invalid check: TTL or HTTP, one of them")
        if given.get("deregistercriticalserviceafter"):
            after = go_duration(given["deregistercriticalserviceafter"], "DeregisterCriticalServiceAfter")
            check.deregister_after = max(after, SHORTEST_DEREGISTER_AFTER)
        if status == "critical":
            check.critical_since = self.now
        return check

    def deregister(self, service_id: str) -> None:
        """``PUT /v1/agent/service/deregister/:service_id``"""
        service = self.services.pop(service_id, None)
        if service is None:
            raise Refused(404, f'Unknown service ID "{service_id}". Ensure that the service ID is passed')
        self._changed_service(service)
        if not any(self.named(service.name)):
            self.extinction = self.names.pop(service.name)

    def update(self, check_id: str, status: Status, output: str) -> None:
        """``PUT /v1/agent/check/pass|warn|fail/:check_id``"""
        for service in self.services.values():
            check = service.checks.get(check_id)
            if check is not None:
                if check.ttl is None:
                    raise Refused(500, f'CheckID "{check_id}" does not have associated TTL')
                check.refreshed = self.now
                self.set_status(service, check, status, output)
                return
        raise Refused(404, f'Unknown check ID "{check_id}". Ensure that the check ID is passed')

    def set_status(self, service: Service, check: Check, status: Status, output: str) -> None:
        """Takes a check's result; one that changes nothing raises no index."""
        changed = status != check.status
        check.output = output
        if changed:
            check.status = status
            check.critical_since = self.now if status == "critical" else None
            self._changed_service(service)

    def _changed_service(self, service: Service) -> None:
        service.index = self.names[service.name] = self.wrote()

    def expire(self) -> None:
        """Fails the checks whose TTL is over, and reaps who was critical too long."""
        for service in list(self.services.values()):
            for check in service.checks.values():
                if check.ttl is not None and check.status != "critical" and self.now - check.refreshed > check.ttl:
                    self.set_status(service, check, "critical", "TTL expired")
                if (
                    check.deregister_after is not None
                    and check.critical_since is not None
                    and self.now - check.critical_since > check.deregister_after
                ):
                    self.deregister(service.service_id)
                    break

    def named(self, name: str) -> Iterator[Service]:
        """The registrations of a service."""
        return (service for service in self.services.values() if service.name == name)

    def index_of(self, name: str) -> int:
        """The index of a service: of its latest change. One that does not exist has that of the last that vanished."""
        return self.names.get(name, self.extinction)

    def entries(self, name: str, *, passing: bool, tags: list[str]) -> list[dict[str, Any]]:
        """``GET /v1/health/service/:service``"""
        return [
            {
                "Node": {"ID": "", "Node": "node-1", "Address": "127.0.0.1", "Datacenter": "dc1", "Meta": {}},
                "Service": shown(service),
                "Checks": [
                    {
                        "Node": "node-1",
                        "CheckID": check.check_id,
                        "Name": check.name,
                        "Status": check.status,
                        "Output": check.output,
                        "ServiceID": service.service_id,
                        "ServiceName": service.name,
                    }
                    for check in service.checks.values()
                ],
            }
            for service in self.named(name)
            if (service.passing or not passing) and set(tags) <= set(service.tags)
        ]


def shown(service: Service) -> dict[str, Any]:
    """A registration as the API shows it."""
    return {
        "ID": service.service_id,
        "Service": service.name,
        "Tags": service.tags,
        "Address": service.address,
        "Meta": service.meta,
        "Port": service.port,
        "Weights": service.weights,
        "EnableTagOverride": False,
        "ModifyIndex": service.index,
    }
