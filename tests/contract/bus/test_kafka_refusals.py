"""What is said of a Kafka cluster that cannot be used: one sentence each, that says what to do and no password."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from microkit.bus.connect import connect, started
from microkit.bus.kafka import bus as bus_module
from microkit.bus.kafka import refusal
from microkit.errors import ConfigurationError
from microkit.servers.ports import free_ports
from tests.contract.bus.kafka_stand_in import OLD, Listener, listening

pytestmark = pytest.mark.anyio

METADATA, VERSIONS = 3, 18


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "_ASK_SECONDS", 0.2)  # each is refused at once, and the client tries again
    monkeypatch.setattr(refusal, "_LOOK", 30.0)  # at most: it ends when there is something to say


@pytest.fixture
def secure(tmp_path: Path) -> ssl.SSLContext:
    """Of a broker whose certificate nobody knows."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker.example")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (tmp_path / "both.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "both.pem")
    return context


async def said(url: str) -> str:
    bus = connect(url)
    try:
        with pytest.raises(ConfigurationError) as caught:
            await started(bus, url)
    finally:
        await bus.close()
    assert "sesame" not in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_why_a_broker_will_not_have_us_is_said(secure: ssl.SSLContext) -> None:
    (dead,) = free_ports(1)
    async with AsyncExitStack() as open_:

        async def at(listener: Listener, context: ssl.SSLContext | None = None) -> str:
            return await open_.enter_async_context(listening(listener, context))

        sasl = "security.protocol=SASL_PLAINTEXT"
        hangs_up = "the broker hangs up without a word: it wants TLS (kafka+ssl://), or is older than Kafka 0.10"
        expected = {
            f"kafka://ada:sesame@{await at(Listener())}?{sasl}": (
                "the broker refuses this user with this password (Authentication failed: Invalid username or "
                "password): see both in bus_url"
            ),
            f"kafka://ada:sesame@{await at(Listener(mechanism='SCRAM-SHA-512'))}?{sasl}": (
                "the broker knows other SASL mechanisms (SCRAM-SHA-512): name one with sasl.mechanism"
            ),
            f"kafka://{await at(Listener(hangs_up_at=METADATA))}": (
                "the broker hangs up when it is asked something: it wants a user and a password before the host"
            ),
            f"kafka://{await at(Listener(hangs_up_at=VERSIONS))}": hangs_up,
            f"kafka://{await at(Listener(), secure)}": hangs_up,
            f"kafka+ssl://{await at(Listener())}": (
                "the broker speaks no TLS at this port: name the one at which it does, or kafka://"
            ),
            f"kafka+ssl://{await at(Listener(), secure)}": (
                "the broker's certificate cannot be verified: name who signed it with ssl.ca.location, and the host as "
                "the certificate has it"
            ),
            "kafka://nowhere.invalid:9092": "nobody knows the host nowhere.invalid:9092",
            f"kafka://127.0.0.1:{dead}": "nothing listens there (Connection refused)",
        }
        async with asyncio.timeout(120):
            found = await asyncio.gather(*(said(url) for url in expected))
    masked = [url.replace("sesame", "***") for url in expected]
    assert list(found) == [
        f"The bus {url} cannot be reached: kafka: {why}; see that it runs, and that its address and password are right"
        for url, why in zip(masked, expected.values(), strict=True)
    ]


async def test_what_is_no_broker_is_not_taken_for_one_with_large_messages() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        found = await said(f"kafka://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert "what answers there does not speak Kafka's protocol, or wants TLS: see the port" in found


@pytest.mark.parametrize("query", ["", "?create_topics=false"])
async def test_a_broker_that_would_drop_headers_is_refused(monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    monkeypatch.setattr(bus_module, "_ASK_SECONDS", 30.0)
    async with listening(Listener(speaks=OLD)) as where, asyncio.timeout(120):
        assert await said(f"kafka://{where}{query}") == (
            "bus_url: the broker is older than Kafka 0.11, whose messages have no headers: upgrade it, or name another"
        )


async def test_a_broker_that_wants_to_be_told_how_many_partitions_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "_ASK_SECONDS", 30.0)
    monkeypatch.setattr(bus_module, "too_old", lambda *_, **__: False)
    async with listening(Listener(speaks=OLD)) as where, asyncio.timeout(120):
        url = f"kafka://{where}"
        bus = connect(url)
        bus.declare("readers", ["bills"])
        try:
            with pytest.raises(ConfigurationError, match=r"too old to make topics .*: upgrade it, say partitions="):
                await started(bus, url)
        finally:
            await bus.close()
