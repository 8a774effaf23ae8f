"""Idempotency keys, on SQLite and on PostgreSQL: one effect, one reply."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, update

from microkit.db import Database, database_now
from microkit.errors import Conflict
from microkit.web.idempotency import Idempotency
from microkit.web.tables import idempotency
from tests.contract.web.charging import Desk, app_of, ask, count

pytestmark = pytest.mark.anyio


async def test_the_same_request_again_has_the_same_reply_and_no_effect(charged: Database) -> None:
    desk = Desk()
    app = app_of(desk, charged)
    first = await ask(app, {"amount": 5})
    again = await ask(app, {"amount": 5})
    assert (first.status, first.replayed) == (201, False)
    assert (again.status, again.replayed) == (201, True)
    assert again.body == first.body
    assert again.headers["content-type"] == first.headers["content-type"]
    assert await count(charged) == desk.calls == 1


async def test_it_holds_for_another_instance_of_the_service(charged: Database) -> None:
    first = await ask(app_of(Desk(), charged), {"amount": 5})
    again = await ask(app_of(Desk(), charged), {"amount": 5})
    assert again.body == first.body
    assert await count(charged) == 1


async def test_a_key_in_the_quotes_of_the_ietf_draft_is_the_same_key(charged: Database) -> None:
    app = app_of(Desk(), charged)
    await ask(app, {"amount": 5}, "key-1")
    assert (await ask(app, {"amount": 5}, '"key-1"')).replayed


async def test_the_same_key_with_another_body_is_refused(charged: Database) -> None:
    app = app_of(Desk(), charged)
    await ask(app, {"amount": 5})
    other = await ask(app, {"amount": 6})
    assert (other.status, other.json["type"]) == (422, "urn:problem:idempotency-key-reused")
    assert await count(charged) == 1


async def test_the_same_key_of_another_caller_is_another_key(charged: Database) -> None:
    app = app_of(Desk(), charged)
    await ask(app, {"amount": 5}, who="ada")
    other = await ask(app, {"amount": 6}, who="bob")
    assert (other.status, other.replayed) == (201, False)
    assert await count(charged) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "\x7f", '"'])
async def test_a_malformed_key_is_refused(key: str, charged: Database) -> None:
    refused = await ask(app_of(Desk(), charged), {"amount": 5}, key)
    expected = 201 if key == '"' else 400  # a lone quote is a character like others
    assert refused.status == expected


async def test_a_key_of_255_characters_is_taken(charged: Database) -> None:
    assert (await ask(app_of(Desk(), charged), {"amount": 5}, "x" * 255)).status == 201


async def test_without_a_key_each_request_has_its_effect(charged: Database) -> None:
    app = app_of(Desk(), charged)
    for _ in range(2):
        assert not (await ask(app, {"amount": 5}, None)).replayed
    assert await count(charged) == 2


async def test_what_was_refused_is_not_remembered(charged: Database) -> None:
    desk = Desk()

    async def refuse() -> None:
        raise Conflict("not today")

    desk.before = refuse
    app = app_of(desk, charged)
    assert (await ask(app, {"amount": 5})).status == 409
    desk.before = None
    again = await ask(app, {"amount": 5})
    assert (again.status, again.replayed) == (201, False)
    assert await count(charged) == 1


async def test_an_operation_that_is_harmless_to_repeat_remembers_nothing(charged: Database) -> None:
    app = app_of(Desk(), charged)
    for _ in range(2):
        assert not (await ask(app, {"amount": 5}, method="PUT", path="/charges/latest")).replayed
    assert await count(charged) == 2


async def test_a_body_with_a_secret_leaves_nothing_in_the_table(charged: Database) -> None:
    app = app_of(Desk(), charged)
    assert (await ask(app, {"pin": "1234"}, path="/charges/pin")).status == 201
    async with charged.transaction(read_only=True) as tx:
        assert await tx.scalar(select(func.count()).select_from(idempotency)) == 0


async def test_replies_past_their_retention_are_pruned_and_others_kept(charged: Database) -> None:
    app = app_of(Desk(), charged)
    await ask(app, {"amount": 5}, "old")
    async with charged.transaction() as tx:
        await tx.execute(update(idempotency).values(expires_at=database_now(-1.0)))
    await ask(app, {"amount": 6}, "new")
    assert await Idempotency(charged).prune() == 1
    assert (await ask(app, {"amount": 6}, "new")).replayed
    assert not (await ask(app, {"amount": 5}, "old")).replayed


async def test_the_reply_is_kept_for_a_day(charged: Database) -> None:
    await ask(app_of(Desk(), charged), {"amount": 5})
    async with charged.transaction(read_only=True) as tx:
        left = await tx.scalar(
            select(func.count()).where(
                idempotency.c.expires_at > database_now(23.9 * 3600),
                idempotency.c.expires_at < database_now(24.1 * 3600),
            )
        )
    assert left == 1
