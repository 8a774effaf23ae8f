"""Keys from a real JWKS endpoint: loaded, kept, loaded again, and never fetched more often than allowed."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from microkit.auth import Issuer, RemoteKeys, SigningKey, Verifier, verifier_for
from microkit.errors import Unauthorized, Unavailable

pytestmark = pytest.mark.anyio

ISSUER = "https://user.example"


class Endpoint:
    """A JWKS endpoint that answers as a test wants it to."""

    def __init__(self) -> None:
        self.url = ""
        self.key = SigningKey.generate()
        self.keys: list[dict[str, Any]] = [self.key.public_jwk()]
        self.asked = 0
        self.status = 200
        self.body: bytes | None = None
        self.headers: dict[str, str] = {}
        self.other: list[dict[str, Any]] = []
        self.arrived = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def answer(self, request: web.Request) -> web.Response:
        if request.query_string == "other":
            return web.json_response({"keys": self.other})
        self.asked += 1
        self.arrived.set()
        await self.gate.wait()
        body = json.dumps({"keys": self.keys}).encode() if self.body is None else self.body
        return web.Response(status=self.status, body=body, headers=self.headers)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    found = Endpoint()
    app = web.Application()
    app.router.add_get("/jwks.json", found.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/jwks.json"
    yield found
    found.gate.set()
    await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def test_keys_are_loaded_when_first_asked_for_and_then_kept(
    endpoint: Endpoint, session: aiohttp.ClientSession
) -> None:
    keys = RemoteKeys(endpoint.url, session)
    assert endpoint.asked == 0
    for _ in range(5):
        found = await keys.find(endpoint.key.kid)
        assert found is not None
        assert found.algorithm_name == "EdDSA"
    assert endpoint.asked == 1


async def test_keys_that_were_prepared_are_there_when_the_issuer_has_gone(
    endpoint: Endpoint, session: aiohttp.ClientSession
) -> None:
    keys = RemoteKeys(endpoint.url, session, retry_after=0.0)
    verifier = Verifier({ISSUER: keys}, audience="billpay")
    verifier.prepare()
    await endpoint.arrived.wait()
    async with asyncio.timeout(60):
        while keys.empty:
            await asyncio.sleep(0.001)
    endpoint.status = 500
    token = Issuer(ISSUER, audience="billpay", keys=[endpoint.key]).sign("8c1d").value
    assert (await verifier.verify(token)).subject == "8c1d"
    assert endpoint.asked == 1
    await verifier.close()


async def test_an_issuer_that_starts_later_is_asked_until_it_answers_and_nobody_is_warned(
    endpoint: Endpoint, session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.status = 503
    keys = RemoteKeys(endpoint.url, session)
    keys.prepare()
    async with asyncio.timeout(60):
        while endpoint.asked < 2:
            await asyncio.sleep(0.001)
        endpoint.status = 200
        while keys.empty:
            await asyncio.sleep(0.001)
    assert [record.levelname for record in caplog.records if record.levelno > logging.INFO] == []
    await keys.close()


async def test_what_could_not_be_prepared_is_asked_for_by_the_first_token_at_once(
    endpoint: Endpoint, session: aiohttp.ClientSession
) -> None:
    endpoint.status = 503
    keys = RemoteKeys(endpoint.url, session)
    keys.prepare()
    async with asyncio.timeout(60):
        await endpoint.arrived.wait()
        while keys.loading:
            await asyncio.sleep(0.001)
    endpoint.status = 200
    assert await keys.find(endpoint.key.kid) is not None
    await keys.close()


async def test_closing_ends_the_preparation(endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
    endpoint.status = 503
    keys = RemoteKeys(endpoint.url, session)
    keys.prepare()
    await endpoint.arrived.wait()
    await keys.close()
    asked = endpoint.asked
    await asyncio.sleep(1.2)  # twice the pause before the next try
    assert endpoint.asked == asked


async def test_a_hundred_first_calls_at_once_load_the_keys_once(
    endpoint: Endpoint, session: aiohttp.ClientSession
) -> None:
    keys = RemoteKeys(endpoint.url, session)
    found = await asyncio.gather(*(keys.find(endpoint.key.kid) for _ in range(100)))
    assert all(found)
    assert endpoint.asked == 1


async def test_an_unknown_id_loads_the_keys_again_but_not_before_its_time(
    endpoint: Endpoint, session: aiohttp.ClientSession
) -> None:
    patient = RemoteKeys(endpoint.url, session, retry_after=3600.0)
    await patient.find(endpoint.key.kid)
    for number in range(50):
        assert await patient.find(f"made-up-{number}") is None
    assert endpoint.asked == 1

    eager = RemoteKeys(endpoint.url, session, retry_after=0.0)
    await eager.find(endpoint.key.kid)
    new = SigningKey.generate()
    endpoint.keys.append(new.public_jwk())
    assert await eager.find(new.kid) is not None
    assert endpoint.asked == 3


async def test_rotating_the_key_refuses_nobody(endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
    """The new key is published, then used, then the old one is withdrawn, while tokens are being verified."""
    old, new = endpoint.key, SigningKey.generate()
    verifier = Verifier({ISSUER: RemoteKeys(endpoint.url, session, retry_after=0.0)}, audience="billpay")

    async def verified(*keys: SigningKey) -> None:
        tokens = [Issuer(ISSUER, audience="billpay", keys=keys).sign(f"user-{n}").value for n in range(20)]
        found = await asyncio.gather(*map(verifier.verify, tokens))
        assert [principal.subject for principal in found] == [f"user-{n}" for n in range(20)]

    await verified(old)
    endpoint.keys = [old.public_jwk(), new.public_jwk()]
    await verified(old, new)
    await verified(new, old)
    endpoint.keys = [new.public_jwk()]
    await verified(new)


async def test_a_withdrawn_key_is_gone_once_the_keys_are_loaded_again(
    endpoint: Endpoint, session: aiohttp.ClientSession
) -> None:
    keys = RemoteKeys(endpoint.url, session, max_age=0.0, retry_after=0.0)
    assert await keys.find(endpoint.key.kid) is not None
    endpoint.keys = [SigningKey.generate().public_jwk()]
    found: object = endpoint.key
    async with asyncio.timeout(60):
        while found is not None:
            found = await keys.find(endpoint.key.kid)
            await asyncio.sleep(0.001)
    await keys.close()


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 500},
        {"status": 404},
        {"body": b"not json"},
        {"body": b"[]"},
        {"body": b'{"keys": {}}'},
        {"body": b'{"keys": []}'},
        {"body": b'{"keys": [7, {"kty": "oct", "k": "c2VjcmV0", "kid": "x"}]}'},
        {"body": gzip.compress(b" " * 50_000_000, mtime=0), "headers": {"Content-Encoding": "gzip"}},
    ],
    ids=lambda trouble: str(trouble)[:40],
)
async def test_the_last_good_keys_stay_while_the_issuer_is_in_trouble(
    endpoint: Endpoint, session: aiohttp.ClientSession, trouble: dict[str, Any]
) -> None:
    keys = RemoteKeys(endpoint.url, session, retry_after=0.0)
    assert await keys.find(endpoint.key.kid) is not None
    for name, value in trouble.items():
        setattr(endpoint, name, value)
    assert await keys.find("unknown") is None
    assert endpoint.asked == 2
    assert await keys.find(endpoint.key.kid) is not None


async def test_a_redirect_to_other_keys_is_not_followed(endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
    keys = RemoteKeys(endpoint.url, session, retry_after=0.0)
    assert await keys.find(endpoint.key.kid) is not None
    endpoint.status, endpoint.headers = 302, {"Location": endpoint.url + "?other"}
    stolen = SigningKey.generate()
    endpoint.other = [stolen.public_jwk()]
    assert await keys.find(stolen.kid) is None
    assert endpoint.asked == 2


async def test_a_key_set_of_more_than_a_quarter_mebibyte_is_not_read(
    endpoint: Endpoint, session: aiohttp.ClientSession
) -> None:
    keys = RemoteKeys(endpoint.url, session, retry_after=0.0)
    assert await keys.find(endpoint.key.kid) is not None
    new = SigningKey.generate()
    document = json.dumps({"keys": [new.public_jwk()]}).encode()
    endpoint.body = document + b" " * 300_000
    assert await keys.find(new.kid) is None
    endpoint.body = document + b" " * 200_000
    assert await keys.find(new.kid) is not None


@pytest.mark.parametrize("trouble", [{"status": 500}, {"body": b"not json"}])
async def test_without_any_keys_a_token_can_be_neither_accepted_nor_refused(
    endpoint: Endpoint, session: aiohttp.ClientSession, trouble: dict[str, Any]
) -> None:
    for name, value in trouble.items():
        setattr(endpoint, name, value)
    keys = RemoteKeys(endpoint.url, session, retry_after=0.0)
    verifier = Verifier({ISSUER: keys}, audience="billpay")
    token = Issuer(ISSUER, audience="billpay", keys=[endpoint.key]).sign("8c1d").value
    with pytest.raises(Unavailable) as caught:
        await verifier.verify(token)
    assert caught.value.headers["Retry-After"] == "1"
    endpoint.status, endpoint.body = 200, None
    assert (await verifier.verify(token)).subject == "8c1d"


async def test_an_issuer_that_cannot_be_reached_makes_tokens_unverifiable(session: aiohttp.ClientSession) -> None:
    keys = RemoteKeys("http://127.0.0.1:9/jwks.json", session)
    with pytest.raises(Unavailable):
        await keys.find("any")


async def test_a_dead_issuer_is_not_hammered(endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
    endpoint.status = 500
    keys = RemoteKeys(endpoint.url, session)
    for _ in range(20):
        with pytest.raises(Unavailable):
            await keys.find("any")
    assert endpoint.asked == 1


async def test_keys_of_other_kinds_are_passed_over(endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
    endpoint.keys = [{"kty": "RSA", "kid": "rsa", "n": "AQAB", "e": "AQAB"}, *endpoint.keys]
    keys = RemoteKeys(endpoint.url, session, retry_after=3600.0)
    assert await keys.find(endpoint.key.kid) is not None
    assert await keys.find("rsa") is None


async def test_who_stops_waiting_does_not_stop_the_others(endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
    endpoint.gate.clear()
    keys = RemoteKeys(endpoint.url, session)
    first, second = (asyncio.create_task(keys.find(endpoint.key.kid)) for _ in range(2))
    await endpoint.arrived.wait()
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    endpoint.gate.set()
    assert await second is not None
    assert endpoint.asked == 1


async def test_closing_ends_a_load_under_way(endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
    endpoint.gate.clear()
    keys = RemoteKeys(endpoint.url, session)
    waiting = asyncio.create_task(keys.find(endpoint.key.kid))
    await endpoint.arrived.wait()
    await keys.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await keys.close()


async def test_settings_make_a_verifier_that_loads_its_keys(endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
    verifier = verifier_for(
        issuer=ISSUER, audience="billpay", jwks_url=endpoint.url, service_keys=None, session=session
    )
    assert verifier is not None
    issuer = Issuer(ISSUER, audience="billpay", keys=[endpoint.key])
    assert (await verifier.verify(issuer.sign("8c1d").value)).subject == "8c1d"
    stranger = Issuer(ISSUER, audience="billpay", keys=[SigningKey.generate()])
    with pytest.raises(Unauthorized):
        await verifier.verify(stranger.sign("8c1d").value)
    await verifier.close()
