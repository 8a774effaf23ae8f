"""Brokers behind TLS, users and passwords: reached by URL or by the client's own object, and refused in clear words."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from microkit.bus import Bus, connect
from microkit.bus.kafka import KafkaBus, KafkaOptions
from microkit.bus.kafka import bus as kafka_bus
from microkit.bus.redis import RedisBus
from microkit.errors import ConfigurationError
from microkit.servers.valkey import ValkeyServer
from microkit.testing.bus_suite import ids, new_name, numbered, numbers, receive
from microkit.testing.valkey import valkey

pytestmark = pytest.mark.anyio

PASSWORD = "p@ss/w:rd"
ENCODED = "p%40ss%2Fw%3Ard"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "microkit tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


class Front:
    """A listener with TLS in front of a server without, as a mesh or a load balancer puts there."""

    def __init__(self, certificate: Path, port: int) -> None:
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificate)
        self._behind = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def __aenter__(self) -> Front:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        ways = [
            asyncio.create_task(self._copy(reader, behind_writer)),
            asyncio.create_task(self._copy(behind_reader, writer)),
        ]
        self._tasks.update(ways)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
        finally:
            writer.close()


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """A Valkey with a password for the default user, and a user of its own."""
    with valkey() as running:
        client: Any = SyncRedis(port=running.port)
        client.execute_command("ACL", "SETUSER", "shop", "on", f">{PASSWORD}", "~*", "&*", "+@all")
        client.config_set("requirepass", PASSWORD)
        client.close()
        yield running


@pytest.fixture
async def front(server: ValkeyServer, certificate: Path) -> AsyncIterator[Front]:
    async with Front(certificate, server.port) as running:
        yield running


async def works(bus: Bus) -> None:
    topic = new_name()
    await bus.start()
    try:
        await bus.publish(numbered(topic, 5))
        assert ids(await receive(await bus.subscribe(new_name(), [topic]), 5)) == numbers(5)
    finally:
        await bus.close()


async def refusal_of(bus: Bus) -> str:
    with pytest.raises(ConnectionError) as refused:
        await bus.start()
    await bus.close()
    said = f"{refused.value!s} {refused.value!r} {bus!r} {vars(bus).get('options')!r}"
    assert PASSWORD not in said
    assert ENCODED not in said
    return said


@pytest.mark.parametrize("user", ["", "shop", "default"])
async def test_redis_takes_user_and_password_from_the_url(server: ValkeyServer, user: str) -> None:
    await works(connect(f"redis://{user}:{ENCODED}@127.0.0.1:{server.port}/0"))


async def test_redis_over_tls_takes_its_certificates_from_the_url(front: Front, certificate: Path) -> None:
    url = f"rediss://shop:{ENCODED}@127.0.0.1:{front.port}/0?ssl_ca_certs={certificate}&ssl_check_hostname=true"
    await works(connect(url))


async def test_redis_takes_a_client_with_its_own_settings(front: Front, certificate: Path) -> None:
    client: Any = Redis(
        host="127.0.0.1",
        port=front.port,
        username="shop",
        password=PASSWORD,
        ssl=True,
        ssl_ca_certs=str(certificate),
        socket_timeout=None,
        retry=Retry(NoBackoff(), 0),
    )
    await works(RedisBus(client))


async def test_redis_over_tls_does_not_trust_a_stranger(front: Front) -> None:
    said = await refusal_of(connect(f"rediss://shop:{ENCODED}@127.0.0.1:{front.port}/0"))
    assert "certificate" in said.lower()


@pytest.mark.parametrize("userinfo", ["", ":wrong@", "shop:wrong@", "nobody:wrong@"])
async def test_a_wrong_password_for_redis_is_said(server: ValkeyServer, userinfo: str) -> None:
    said = await refusal_of(connect(f"redis://{userinfo}127.0.0.1:{server.port}/0"))
    assert "see the user and the password in bus_url" in said


@pytest.mark.parametrize(
    "url",
    [
        f"redis://shop:{PASSWORD}@host",
        f"rediss://shop:{ENCODED}@host:port",
        f"kafka://shop:{ENCODED}@host/path",
        f"kafka+ssl://shop:{ENCODED}@host?security_protocol=plaintext",
        f"kafka://shop:{ENCODED}@host?acks=1",
        f"redis//shop:{ENCODED}@host",
        f"shop:{ENCODED}@host",
        f"http://shop:{ENCODED}@host",
    ],
)
async def test_a_url_that_is_refused_keeps_its_password_to_itself(url: str) -> None:
    with pytest.raises(ConfigurationError, match="bus_url") as refused:
        connect(url)
    for secret in (PASSWORD, ENCODED, "w:rd", "p@ss", "'p", "shop"):
        assert secret not in str(refused.value)


# Kafka. There is no broker with TLS or SASL to be had in a package: what is shown is what librdkafka is told, and what
# comes of a broker that refuses.


@pytest.mark.parametrize(
    ("url", "client"),
    [
        ("kafka://one:9092,two:9092", {}),
        ("kafka+ssl://one:9093", {"security.protocol": "SSL"}),
        (
            f"kafka://shop:{ENCODED}@one:9093",
            {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "PLAIN",
                "sasl.username": "shop",
                "sasl.password": PASSWORD,
            },
        ),
        (
            f"kafka+ssl://shop:{ENCODED}@one:9093?sasl_mechanism=SCRAM-SHA-512&ssl.ca.location=/run/ca.pem",
            {
                "security.protocol": "SASL_SSL",
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": "shop",
                "sasl.password": PASSWORD,
                "ssl.ca.location": "/run/ca.pem",
            },
        ),
        (
            "kafka://one?security_protocol=SASL_PLAINTEXT&sasl_mechanism=PLAIN&sasl_username=shop&sasl_password=p%40",
            {
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": "PLAIN",
                "sasl.username": "shop",
                "sasl.password": "p@",
            },
        ),
        (
            "kafka+ssl://one?ssl_certificate_location=/run/a.pem&ssl_key_location=/run/a.key&ssl_key_password=x",
            {
                "security.protocol": "SSL",
                "ssl.certificate.location": "/run/a.pem",
                "ssl.key.location": "/run/a.key",
                "ssl.key.password": "x",
            },
        ),
    ],
)
async def test_what_librdkafka_is_told_of_security(url: str, client: dict[str, str]) -> None:
    options = KafkaOptions.from_url(url)
    assert options.client == client
    for secret in (PASSWORD, "p@", "'x'"):
        assert secret not in repr(options)


async def test_kafka_over_tls_does_not_trust_a_stranger(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_bus, "_ASK_SECONDS", 1.0)
    async with Front(certificate, 9) as front:
        said = await refusal_of(connect(f"kafka+ssl://shop:{ENCODED}@127.0.0.1:{front.port}"))
    assert "the broker's certificate cannot be verified: name who signed it with ssl.ca.location" in said


class Guard:
    """What of a Kafka broker comes before the first question: it knows SASL PLAIN, and nobody."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.tasks: set[asyncio.Task[Any] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                request = await reader.readexactly(size)
                kind, version, correlation = struct.unpack(">hhi", request[:8])
                body = struct.pack(">i", correlation) + self.answer(kind, version, request)
                writer.write(struct.pack(">i", len(body)) + body)
                await writer.drain()
        writer.close()

    def answer(self, kind: int, version: int, request: bytes) -> bytes:
        if kind == 18:  # ApiVersions: in version 0 only
            known = [(3, 0, 4), (17, 0, 1), (18, 0, 0), (36, 0, 1)]
            return struct.pack(">hi", 35 if version else 0, len(known)) + b"".join(
                struct.pack(">hhh", *each) for each in known
            )
        if kind == 17:  # SaslHandshake
            return struct.pack(">hih", 0, 1, 5) + b"PLAIN"
        assert kind == 36, kind  # SaslAuthenticate
        self.heard.append(request)
        words = b"Authentication failed: invalid user or password"
        return struct.pack(">hh", 58, len(words)) + words + struct.pack(">i", 0) + struct.pack(">q", 0)


async def test_a_wrong_password_for_kafka_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_bus, "_ASK_SECONDS", 1.0)
    guard = Guard()
    server = await asyncio.start_server(guard.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    bus = connect(f"kafka://shop:{ENCODED}@127.0.0.1:{port}?security_protocol=SASL_PLAINTEXT")
    assert isinstance(bus, KafkaBus)
    said = await refusal_of(bus)
    server.close()
    for task in guard.tasks:
        if task is not None:
            task.cancel()
    await asyncio.gather(*[task for task in guard.tasks if task is not None], return_exceptions=True)
    assert f"\0shop\0{PASSWORD}".encode() in guard.heard[0]
    assert "the broker refuses this user with this password (Authentication failed" in said
    assert "see both in bus_url" in said
