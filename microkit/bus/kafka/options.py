"""What a Kafka bus is told: by its URL, or as an object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from microkit.errors import ConfigurationError
from microkit.settings.quantities import seconds

_EXAMPLE: Final = "kafka://broker-1:9092,broker-2:9092"
_OURS: Final = {
    "acks": "a confirmed message is on all in-sync replicas",
    "request.required.acks": "a confirmed message is on all in-sync replicas",
    "auto.offset.reset": "a new group begins with the messages that are there",
    "bootstrap.servers": "the servers are the URL's hosts",
    "enable.auto.commit": "an offset is committed when its message was acknowledged",
    "enable.auto.offset.store": "an offset is committed when its message was acknowledged",
    "enable.idempotence": "idempotence=false is the way to send without it, in order all the same",
    "group.id": "the group is the subscription's",
    "message.timeout.ms": "delivery_timeout bounds a send",
    "delivery.timeout.ms": "delivery_timeout bounds a send",
    "partitioner": "keys are placed as Java's clients place them",
}
_IN_FLIGHT: Final = ("max.in.flight", "max.in.flight.requests.per.connection")
_MOST_IN_FLIGHT: Final = 5
"""Requests whose order an idempotent producer's broker keeps."""
_UNDERSCORED: Final = ("sasl_", "security_", "ssl_")
"""How properties begin that other clients and people write so: ``security_protocol``."""
_DOTLESS: Final = frozenset({"debug", "log_level", "retries"})
"""Those of librdkafka's properties that have no dot."""


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """How to reach a Kafka cluster.

    ``servers`` is ``host:port,host:port``. ``client`` holds any property of librdkafka that is not the adapter's own
    business: ``security.protocol``, ``sasl.mechanism``, ``ssl.ca.location``, ``session.timeout.ms``,
    ``compression.type``, ``oauth_cb`` …; producers ignore those of consumers, and the other way round.
    ``delivery_timeout`` is the seconds after which what is not confirmed is given up, ``drain_timeout`` those for which
    a partition that goes to another member waits for the handlers that have begun (more than a subscription's time-out,
    which is 30). Topics that are missing are made
    with ``partitions`` and ``replication`` (-1: as the cluster has it), unless ``create_topics`` is off.

    ``idempotence`` off is for brokers that do not keep a producer's sequence as safely as its messages: requests go one
    after the other, so that the order holds, and one that was sent again may be there twice, for the inbox to see.
    """

    servers: str
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)
    delivery_timeout: float = 30.0
    drain_timeout: float = 35.0
    create_topics: bool = True
    partitions: int = -1
    replication: int = -1
    idempotence: bool = True

    def __post_init__(self) -> None:
        for name in self.client:
            if name in _OURS:
                raise ConfigurationError(f"bus_url: {name} cannot be set, because {_OURS[name]}")
            if name in _IN_FLIGHT and not (self.idempotence and _in_order(self.client[name])):
                raise ConfigurationError(
                    f"bus_url: {name} is at most {_MOST_IN_FLIGHT}, and not for idempotence=false to say, "
                    "because a retried send must not overtake another"
                )
        if self.delivery_timeout <= 0:
            raise ConfigurationError("bus_url: delivery_timeout is more than 0; an example: 30s")

    @classmethod
    def from_url(cls, url: str) -> KafkaOptions:
        """Reads ``kafka://[user:password@]host:port[,host:port…][?name=value&…]``, or the same with ``kafka+ssl://``.

        A name with a dot is a property of librdkafka, the others are fields of this class; those of security may be
        written with underscores (``security_protocol=SASL_SSL&ssl_ca_location=/run/ca.pem``). ``kafka+ssl`` means TLS,
        a user means SASL over TLS with the mechanism PLAIN, unless ``sasl.mechanism`` and ``security.protocol`` say
        otherwise. User and password are percent-encoded.

        Raises:
            ConfigurationError: the URL says something that is not understood.
        """
        parts = urlsplit(url)
        userinfo, at, servers = parts.netloc.rpartition("@")
        if not servers or parts.path.strip("/"):
            raise ConfigurationError(f"bus_url: kafka:// takes hosts and no path; an example: {_EXAMPLE}")
        client: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for written, value in parse_qsl(parts.query, keep_blank_values=True):
            name = written.replace("_", ".") if written.startswith(_UNDERSCORED) else written
            if "." in name or name in _DOTLESS or name in _OURS:
                client[name] = value
            else:
                own[name] = _field(name, value)
        if at:
            user, _, password = userinfo.partition(":")
            client = {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "PLAIN",
                "sasl.username": unquote(user),
                "sasl.password": unquote(password),
            } | client
        elif parts.scheme == "kafka+ssl":
            client.setdefault("security.protocol", "SSL")
        if parts.scheme == "kafka+ssl" and "SSL" not in client["security.protocol"].upper():
            raise ConfigurationError("bus_url: kafka+ssl:// is TLS; leave security.protocol out, or write kafka://")
        return cls(servers, client, **own)


def _in_order(value: object) -> bool:
    try:
        return 1 <= int(str(value)) <= _MOST_IN_FLIGHT
    except ValueError:
        return False


def _field(name: str, value: str) -> Any:
    known = {each.name: str(each.type) for each in fields(KafkaOptions) if each.name not in ("servers", "client")}
    if name not in known:
        raise ConfigurationError(
            f"bus_url: {name!r} is unknown; it may be one of {', '.join(known)}, or a property of librdkafka "
            "such as session.timeout.ms"
        )
    try:
        if known[name] == "bool":
            return {"true": True, "false": False}[value.lower()]
        return seconds(value) if known[name] == "float" else int(value)
    except (KeyError, ValueError):
        example = {"bool": "false", "float": "30s", "int": "12"}[known[name]]
        raise ConfigurationError(f"bus_url: {name}={value!r} is not understood; an example: {example}") from None
