"""A bus URL as AsyncAPI's server."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

Document = dict[str, Any]

_MECHANISMS: Final = {"SCRAM-SHA-256": "scramSha256", "SCRAM-SHA-512": "scramSha512", "GSSAPI": "gssapi"}


def server(url: str) -> Document | None:
    """Where a bus is and how one signs in, without the secrets; ``None`` for a bus within the process."""
    parts = urlsplit(url)
    hosts = parts.netloc.rpartition("@")[2]
    if not hosts:
        return None
    asked = {name.replace("_", "."): values[-1].upper() for name, values in parse_qs(parts.query).items()}
    signs_in = "@" in parts.netloc or "SASL" in asked.get("security.protocol", "")
    if parts.scheme in ("redis", "rediss"):
        found: Document = {"host": hosts, "protocol": "redis" if parts.scheme == "redis" else "rediss"}
        return {**found, "security": [{"type": "userPassword"}]} if signs_in else found
    default = "SASL_SSL" if "@" in parts.netloc else "SSL" if parts.scheme == "kafka+ssl" else "PLAINTEXT"
    secure = "SSL" in asked.get("security.protocol", default)
    found = {"host": hosts, "protocol": "kafka-secure" if secure else "kafka"}
    if signs_in:
        found["security"] = [{"type": _MECHANISMS.get(asked.get("sasl.mechanism", ""), "plain")}]
    return found
