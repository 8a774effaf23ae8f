"""Log-in, refresh and log-out, over HTTP, on both databases."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import aiohttp
import pytest
from argon2 import PasswordHasher
from pydantic import SecretStr
from sqlalchemy import func, select, update

from microkit.auth import SigningKey
from microkit.db import Transaction
from microkit.errors import RemoteProblem
from reference.billpay.contracts.user import RefreshRequest, SessionEnded, Tokens
from reference.billpay.user import domain, sessions
from reference.billpay.user.tables import AccountRow, RefreshTokenRow, SessionRow
from reference.billpay.user.tests.running import PASSWORD, Start, UserService, bearing, set_back

pytestmark = pytest.mark.anyio


async def refresh(user: UserService, tokens: Tokens) -> Tokens:
    return await user.sessions.refresh(RefreshRequest(refresh_token=SecretStr(tokens.refresh_token)))


async def how_sessions_ended(user: UserService) -> list[str | None]:
    async def read(tx: Transaction) -> list[str | None]:
        return list(await tx.scalars(select(SessionRow.ended_by).order_by(SessionRow.started_at)))

    return await user.database.run(read, read_only=True)


async def test_a_refresh_token_is_traded_for_new_tokens_of_the_same_session(user: UserService) -> None:
    await user.register()
    first = await user.log_in()
    second = await refresh(user, first)
    third = await refresh(user, second)
    assert len({tokens.refresh_token for tokens in (first, second, third)}) == 3
    assert len({tokens.access_token for tokens in (first, second, third)}) == 3
    sessions = {(await user.principal(tokens)).session for tokens in (first, second, third)}
    assert len(sessions) == 1


async def test_using_a_refresh_token_twice_ends_its_session(user: UserService) -> None:
    await user.register()
    first = await user.log_in()
    other = await user.log_in()
    second = await refresh(user, first)
    with pytest.raises(SessionEnded):
        await refresh(user, first)
    with pytest.raises(SessionEnded):
        await refresh(user, second)
    assert sorted(await how_sessions_ended(user), key=str) == [None, "reuse"]
    await refresh(user, other)  # a session of its own, which nobody has misused


async def test_of_refreshes_at_once_exactly_one_succeeds_and_the_session_ends(user: UserService) -> None:
    await user.register()
    for _ in range(3):
        tokens = await user.log_in()
        ended = await asyncio.gather(*(refresh(user, tokens) for _ in range(20)), return_exceptions=True)
        won = [one for one in ended if isinstance(one, Tokens)]
        lost = [one for one in ended if not isinstance(one, Tokens)]
        assert len(won) == 1
        assert all(isinstance(one, SessionEnded) for one in lost), lost
        with pytest.raises(SessionEnded):
            await refresh(user, won[0])
    assert await how_sessions_ended(user) == ["reuse"] * 3


async def test_refreshing_in_turn_under_load_breaks_no_session(user: UserService) -> None:
    await user.register()

    async def live(tokens: Tokens) -> None:
        for _ in range(5):
            tokens = await refresh(user, tokens)

    logged_in = [await user.log_in() for _ in range(6)]
    await asyncio.gather(*map(live, logged_in))
    assert await how_sessions_ended(user) == [None] * 6


async def test_what_is_no_refresh_token_is_refused(user: UserService) -> None:
    await user.register()
    tokens = await user.log_in()
    url = f"{user.instance.url}/sessions/refresh"
    async with aiohttp.ClientSession() as session:
        for value in ("", "x", "x" * 43, "\x00", "ö" * 43, "' OR 1=1 --", "x" * 201, None, 7):
            async with session.post(url, json={"refresh_token": value}) as response:
                assert response.status in {400, 401, 422}, value
                assert response.content_type == "application/problem+json"
    await refresh(user, tokens)


async def test_an_access_token_is_no_refresh_token(user: UserService) -> None:
    await user.register()
    tokens = await user.log_in()
    with pytest.raises((SessionEnded, RemoteProblem)):
        await user.sessions.refresh(RefreshRequest(refresh_token=SecretStr(tokens.access_token[:200])))
    swapped = Tokens(access_token=tokens.refresh_token, refresh_token="", expires_in=1)
    with bearing(swapped), pytest.raises(RemoteProblem) as caught:
        await user.users.me()
    assert caught.value.status == 401


async def test_refresh_tokens_are_kept_as_hashes_only(user: UserService) -> None:
    await user.register()
    tokens = await user.log_in()
    (kept,) = await user.database.run(lambda tx: tx.scalars(select(RefreshTokenRow.digest)), read_only=True)
    assert kept == domain.RefreshToken.of(tokens.refresh_token).digest
    assert tokens.refresh_token.encode() not in kept


async def test_logging_out_ends_this_session_and_no_other(user: UserService) -> None:
    await user.register()
    first, second = await user.log_in(), await user.log_in()
    with bearing(first):
        await user.sessions.log_out()
        await user.sessions.log_out()
    with pytest.raises(SessionEnded):
        await refresh(user, first)
    await refresh(user, second)
    assert sorted(await how_sessions_ended(user), key=str) == [None, "logout"]


async def test_nobody_ends_the_session_of_another(user: UserService) -> None:
    await user.register()
    tokens = await user.log_in()
    session = UUID((await user.principal(tokens)).session)
    await user.database.run(lambda tx: sessions.end(tx, session, uuid4(), datetime.now(UTC)))
    await refresh(user, tokens)


async def test_a_session_ends_however_much_it_is_used(user: UserService) -> None:
    await user.register()
    tokens = await refresh(user, await user.log_in())
    await set_back(user, SessionRow, expires_at=timedelta(seconds=1))
    with pytest.raises(SessionEnded):
        await refresh(user, tokens)


async def test_a_refresh_token_that_nobody_uses_expires(user: UserService) -> None:
    await user.register()
    tokens = await user.log_in()
    await set_back(user, RefreshTokenRow, expires_at=timedelta(seconds=1))
    with pytest.raises(SessionEnded):
        await refresh(user, tokens)


async def test_expired_sessions_are_cleared_away_at_the_next_log_in(user: UserService) -> None:
    await user.register()
    for _ in range(3):
        await refresh(user, await user.log_in())
    await set_back(user, SessionRow, expires_at=timedelta(seconds=1))
    await user.log_in()

    async def count(tx: Transaction) -> tuple[int | None, int | None]:
        return (
            await tx.scalar(select(func.count()).select_from(SessionRow)),
            await tx.scalar(select(func.count()).select_from(RefreshTokenRow)),
        )

    assert await user.database.run(count, read_only=True) == (1, 1)


async def test_sessions_live_on_when_the_service_is_started_again(start: Start) -> None:
    async with start() as user:
        await user.register()
        tokens = await user.log_in()
    async with start() as user:
        with bearing(tokens):
            assert (await user.users.me()).name == "Ada"
        await refresh(user, tokens)


async def test_rotating_the_signing_keys_logs_nobody_out(start: Start) -> None:
    old, new = SigningKey.generate(), SigningKey.generate()

    def keys(*listed: SigningKey) -> str:
        return json.dumps({"keys": [json.loads(key.private_jwk()) for key in listed]})

    async with start(signing_keys=keys(old)) as user:
        await user.register()
        tokens = await user.log_in()
    async with start(signing_keys=keys(new, old)) as user:
        with bearing(tokens):
            await user.users.me()
        renewed = await refresh(user, tokens)
    async with start(signing_keys=keys(new)) as user:
        with bearing(renewed):
            await user.users.me()
        with bearing(tokens), pytest.raises(RemoteProblem) as caught:
            await user.users.me()
        assert caught.value.status == 401


async def test_a_hash_of_former_strength_is_renewed_at_log_in(user: UserService) -> None:
    await user.register()
    former = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1).hash(PASSWORD)

    async def weaken(tx: Transaction) -> None:
        await tx.execute(update(AccountRow).values(password_hash=former))

    await user.database.run(weaken)
    await user.log_in()
    stored = await user.database.run(lambda tx: tx.scalar(select(AccountRow.password_hash)), read_only=True)
    assert stored is not None
    assert stored != former
    assert "m=8,t=1" in stored
    await user.log_in()


async def test_no_secret_lies_among_the_idempotency_keys(user: UserService) -> None:
    """A repeated log-in is a new one, and neither body nor tokens are kept for the repetition."""
    await user.register()
    body = {"email": "ada@billpay.example", "password": PASSWORD}
    found = []
    async with aiohttp.ClientSession(headers={"Idempotency-Key": "the same"}) as session:
        for _ in range(2):
            async with session.post(f"{user.instance.url}/sessions", json=body) as response:
                assert response.status == 201
                assert "Idempotency-Replayed" not in response.headers
                found.append(json.loads(await response.read())["refresh_token"])
    assert found[0] != found[1]
