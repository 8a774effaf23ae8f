"""Log-in attempts are limited: for an account, for an address, together over all instances; on both databases."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import aiohttp
import pytest
from sqlalchemy import select

from microkit.db import Database
from microkit.errors import TooManyRequests
from reference.billpay.contracts.user import BadCredentials, Tokens, TooManyAttempts
from reference.billpay.user.attempts import WINDOW, Attempts, Limit, TooMany
from reference.billpay.user.passwords import Passwords
from reference.billpay.user.settings import UserSettings
from reference.billpay.user.tables import AttemptRow
from reference.billpay.user.tests.running import PASSWORD, Start, UserService, set_back

pytestmark = pytest.mark.anyio

WRONG = "quite another one 7"


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
    strange = [one for one in ended if not isinstance(one, BadCredentials | TooManyAttempts)]
    assert strange == []
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
