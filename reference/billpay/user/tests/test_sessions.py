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
from microkit.db import Database, Transaction
from microkit.errors import RemoteProblem, TooManyRequests
from reference.billpay.contracts.user import (
    BadCredentials,
    RefreshRequest,
    SessionEnded,
    Tokens,
    TooManyAttempts,
)
from reference.billpay.user import domain, sessions
from reference.billpay.user.attempts import WINDOW, Attempts, Limit, TooMany
from reference.billpay.user.passwords import Passwords
from reference.billpay.user.settings import UserSettings
from reference.billpay.user.tables import AccountRow, AttemptRow, RefreshTokenRow, SessionRow
from reference.billpay.user.tests.running import PASSWORD, Start, UserService, bearing

pytestmark = pytest.mark.anyio

WRONG = "quite another one 7"


async def refresh(user: UserService, tokens: Tokens) -> Tokens:
    return await user.sessions.refresh(RefreshRequest(refresh_token=SecretStr(tokens.refresh_token)))


async def how_sessions_ended(user: UserService) -> list[str | None]:
    async def read(tx: Transaction) -> list[str | None]:
        return list(await tx.scalars(select(SessionRow.ended_by).order_by(SessionRow.started_at)))

    return await user.database.run(read, read_only=True)


async def set_back(user: UserService, table: type, **columns: timedelta) -> None:
    """Makes it as if the time in these columns had passed by so much more."""
    now = datetime.now(UTC)

    async def write(tx: Transaction) -> None:
        await tx.execute(update(table).values({name: now - by for name, by in columns.items()}))

    await user.database.run(write)


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


async def test_a_wrong_password_and_an_unknown_address_look_the_same(user: UserService) -> None:
    await user.register()
    answers = []
    async with aiohttp.ClientSession() as session:
        for email in ("ada@billpay.example", "nobody@billpay.example"):
            body = {"email": email, "password": WRONG}
            async with session.post(f"{user.instance.url}/sessions", json=body) as response:
                document = json.loads(await response.read())
                document.pop("trace_id", None)
                answers.append((response.status, document, sorted(response.headers)))
    assert answers[0] == answers[1]
    assert answers[0][0] == 401


async def test_the_sixth_attempt_in_a_minute_waits_whether_there_is_an_account_or_not(user: UserService) -> None:
    await user.register()
    for email in ("ada@billpay.example", "nobody@billpay.example"):
        for _ in range(5):
            with pytest.raises(BadCredentials):
                await user.log_in(email, WRONG)
        for password in (WRONG, PASSWORD):
            with pytest.raises(TooManyAttempts) as caught:
                await user.log_in(email, password)
            assert 1 <= int(caught.value.headers["Retry-After"]) <= 61


async def test_a_hundred_guesses_at_once_are_five(user: UserService, monkeypatch: pytest.MonkeyPatch) -> None:
    await user.register()
    verified = 0
    verify = Passwords.verify

    async def counted(self: Passwords, stored: str | None, password: str) -> bool:
        nonlocal verified
        verified += 1
        return await verify(self, stored, password)

    monkeypatch.setattr(Passwords, "verify", counted)
    ended = await asyncio.gather(
        *(user.log_in("ada@billpay.example", f"guess number {n}") for n in range(99)), return_exceptions=True
    )
    assert verified == 5
    assert sum(isinstance(one, BadCredentials) for one in ended) == 5
    assert sum(isinstance(one, TooManyAttempts) for one in ended) == 94


async def test_right_passwords_are_let_in_however_many_come_at_once(user: UserService) -> None:
    await user.register()
    came = await asyncio.gather(*(user.log_in() for _ in range(20)))
    assert len({tokens.refresh_token for tokens in came}) == 20
    left = await user.database.run(lambda tx: tx.scalars(select(AttemptRow.scope)), read_only=True)
    assert [scope for scope in left if not scope.startswith("register:")] == []


async def test_right_ones_among_many_wrong_ones_do_not_make_room_for_more_guesses(user: UserService) -> None:
    """Five failures a minute stay five where the owner does not come, however the guesses are mixed with others'."""
    await user.register()
    await user.register("eve@billpay.example")
    guesses = [user.log_in(password=f"guess number {n}") for n in range(30)]
    own = [user.log_in("eve@billpay.example") for _ in range(10)]
    ended = await asyncio.gather(*guesses[:15], *own, *guesses[15:], return_exceptions=True)
    assert sum(isinstance(one, Tokens) for one in ended) == 10
    assert sum(isinstance(one, BadCredentials) for one in ended) == 5
    assert sum(isinstance(one, TooManyAttempts) for one in ended) == 25


async def test_right_passwords_in_parallel_are_let_in_by_two_instances_that_share_the_limit(start: Start) -> None:
    async with start() as one, start() as other:
        database, second = one.database, other.database
        by_account, by_address = Limit("account:ada", 5), Limit("address:here", 5)

        async def log_in(attempts: Attempts, database: Database) -> None:
            async with attempts.one(database, by_account, by_address) as attempt:
                await asyncio.sleep(0.01)
                await database.run(attempt.succeeded)

        mine, theirs = Attempts(), Attempts()
        await asyncio.gather(*(log_in(mine, database) for _ in range(10)), *(log_in(theirs, second) for _ in range(10)))
        assert list(await database.run(lambda tx: tx.scalars(select(AttemptRow.scope)), read_only=True)) == []


async def test_guesses_at_two_instances_are_five_together(user: UserService) -> None:
    by_account, by_address = Limit("account:ada", 5), Limit("address:here", 50)
    made = 0

    async def guess(attempts: Attempts) -> None:
        nonlocal made
        async with attempts.one(user.database, by_account, by_address) as attempt:
            made += 1
            await asyncio.sleep(0.01)
            await attempt.failed()

    instances = [Attempts(), Attempts(), Attempts()]
    ended = await asyncio.gather(*(guess(instances[n % 3]) for n in range(60)), return_exceptions=True)
    assert made == 5
    assert sum(isinstance(one, TooMany) for one in ended) == 55


async def test_an_attempt_whose_process_died_counts_until_its_minute_is_over(user: UserService) -> None:
    attempts, limit = Attempts(), Limit("account:ada", 1)
    with pytest.raises(RuntimeError, match="killed"):
        async with attempts.one(user.database, limit, Limit("address:here", 50)):
            raise RuntimeError("killed")
    with pytest.raises(TooMany):
        await attempts.count(user.database, limit)
    await set_back(user, AttemptRow, started_at=WINDOW)
    await attempts.count(user.database, limit)


async def test_attempts_count_under_every_spelling_of_an_address(user: UserService) -> None:
    await user.register()
    for email in ("ada@billpay.example", "ADA@billpay.example", "Ada@BILLPAY.example", "aDa@billpay.example"):
        with pytest.raises(BadCredentials):
            await user.log_in(email, WRONG)
    with pytest.raises(BadCredentials):
        await user.log_in("adA@billpay.example", WRONG)
    with pytest.raises(TooManyAttempts):
        await user.log_in("AdA@billpay.example", WRONG)


async def test_a_minute_later_attempts_count_anew(user: UserService) -> None:
    await user.register()
    for _ in range(5):
        with pytest.raises(BadCredentials):
            await user.log_in(password=WRONG)
    await set_back(user, AttemptRow, started_at=timedelta(seconds=61))
    await user.log_in()


async def test_success_forgets_the_failures_of_the_account(user: UserService) -> None:
    await user.register()
    for _ in range(3):
        for _ in range(4):
            with pytest.raises(BadCredentials):
                await user.log_in(password=WRONG)
        await user.log_in()


async def test_attempts_survive_a_restart(start: Start) -> None:
    async with start() as user:
        await user.register()
        for _ in range(5):
            with pytest.raises(BadCredentials):
                await user.log_in(password=WRONG)
    async with start() as user:
        with pytest.raises(TooManyAttempts):
            await user.log_in()


async def test_an_address_has_its_attempts_over_all_accounts_and_success_gives_back_its_own_only(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a machine that is busy elsewhere a minute is over before the last of them.
    monkeypatch.setattr("reference.billpay.user.attempts.WINDOW", timedelta(hours=1))
    assert UserSettings.model_fields["address_attempts"].default == 20
    async with start(address_attempts=6) as user:
        await user.register()
        for number in range(5):
            with pytest.raises(BadCredentials):
                await user.log_in(f"user{number}@billpay.example", WRONG)
            await user.log_in()  # an attacker's own account does not wash the others off
        with pytest.raises(BadCredentials):
            await user.log_in("user5@billpay.example", WRONG)
        with pytest.raises(TooManyAttempts):
            await user.log_in("user6@billpay.example", WRONG)
        with pytest.raises(TooManyAttempts):
            await user.log_in()


async def test_behind_a_trusted_gateway_the_clients_own_address_counts(start: Start) -> None:
    async def guess(user: UserService, forwarded_for: str, number: int) -> int:
        body = {"email": f"user{number}@billpay.example", "password": WRONG}
        async with (
            aiohttp.ClientSession(headers={"X-Forwarded-For": forwarded_for}) as session,
            session.post(f"{user.instance.url}/sessions", json=body) as response,
        ):
            return response.status

    async with start(address_attempts=2, trusted_proxies=["127.0.0.0/8"]) as user:
        assert [await guess(user, "192.0.2.1", n) for n in range(3)] == [401, 401, 429]
        assert [await guess(user, "192.0.2.2", n) for n in range(10, 12)] == [401, 401]
        # What a client writes itself stands on the left, and does not make it another.
        assert [await guess(user, f"203.0.113.{n}, 192.0.2.1", n) for n in range(20, 22)] == [429, 429]
    async with start(address_attempts=2) as user:
        await set_back(user, AttemptRow, started_at=WINDOW)
        assert [await guess(user, f"192.0.2.{n}", n) for n in range(30, 33)] == [401, 401, 429]


async def test_registrations_of_one_address_are_limited(start: Start) -> None:
    async with start(registrations=3) as user:
        for number in range(3):
            await user.register(f"user{number}@billpay.example")
        with pytest.raises(TooManyRequests) as caught:
            await user.register("one-too-many@billpay.example")
        assert caught.value.headers["Retry-After"]


async def test_what_no_longer_counts_is_removed(user: UserService) -> None:
    await user.register()
    for number in range(5):
        with pytest.raises(BadCredentials):
            await user.log_in(f"user{number}@billpay.example", WRONG)
    await set_back(user, AttemptRow, started_at=WINDOW)
    await user.log_in()
    left = await user.database.run(lambda tx: tx.scalars(select(AttemptRow.scope)), read_only=True)
    assert list(left) == []


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
