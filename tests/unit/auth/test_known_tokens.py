"""Tokens that were verified before: remembered for as long as they hold, and no more than so many."""

from __future__ import annotations

import time

import jwt
import pytest

from microkit.auth import FixedKeys, Verifier
from tests.unit.auth.trust import AUDIENCE, ISSUER, Forge, Trust, refused

pytestmark = pytest.mark.anyio


async def test_a_known_token_is_not_verified_twice_but_ends_with_its_time(
    trust: Trust, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = trust.verifier(leeway=10.0)
    now = int(time.time())
    token = forge({"iat": now, "exp": now + 30})
    first = await verifier.verify(token)
    assert await verifier.verify(token) is first
    monkeypatch.setattr(time, "time", lambda: now + 39)
    assert await verifier.verify(token) is first
    monkeypatch.setattr(time, "time", lambda: now + 41)
    # PyJWT reads its own clock, which has not moved; that the token is looked at again is what counts here.
    assert await verifier.verify(token) is not first


async def test_a_withdrawn_key_ends_its_tokens_within_a_minute(trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    class Keys(FixedKeys):
        withdrawn = False

        async def find(self, kid: str) -> jwt.PyJWK | None:
            return None if self.withdrawn else await super().find(kid)

    keys = Keys(trust.issuer().jwks())
    verifier = Verifier({ISSUER: keys}, audience=AUDIENCE)
    token = trust.issuer().sign("8c1d").value
    await verifier.verify(token)
    keys.withdrawn = True
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    await refused(verifier, token)


async def test_the_memory_for_known_tokens_is_bounded(trust: Trust) -> None:
    verifier = trust.verifier(cache_size=8)
    tokens = [trust.issuer().sign(f"user-{number}").value for number in range(30)]
    for token in tokens:
        await verifier.verify(token)
    assert len(verifier._seen) == 8
    assert list(verifier._seen) == tokens[-8:]
    assert (await verifier.verify(tokens[0])).subject == "user-0"


async def test_a_refused_token_takes_no_memory(verifier: Verifier, forge: Forge) -> None:
    for number in range(50):
        await refused(verifier, forge({"aud": f"another-{number}"}))
    assert len(verifier._seen) == 0
