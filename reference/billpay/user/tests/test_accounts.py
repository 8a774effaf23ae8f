"""Accounts through the typed client, over HTTP, on both databases."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import pytest
from sqlalchemy import func, select, update

from microkit.db import Transaction
from microkit.db.migration import drift
from microkit.errors import ConfigurationError, Conflict, NotFound, RemoteProblem
from microkit.outbox.tables import outbox
from microkit.page import PageRequest
from microkit.web.tables import idempotency
from reference.billpay.contracts.user import (
    BadCredentials,
    EmailTaken,
    ProfileChange,
    RoleChange,
    Tokens,
    TooManyAttempts,
    WeakPassword,
)
from reference.billpay.user import domain
from reference.billpay.user.passwords import Passwords
from reference.billpay.user.service import first_admin
from reference.billpay.user.tables import AccountRow, Base
from reference.billpay.user.tests.running import PASSWORD, Start, UserService, bearing

pytestmark = pytest.mark.anyio

ROOT = "root@billpay.example"
ROOT_PASSWORD = "walnut harbor 61 crane"


async def admin(user: UserService) -> Tokens:
    await first_admin(user.database, Passwords(), ROOT, ROOT_PASSWORD)
    return await user.log_in(ROOT, ROOT_PASSWORD)


async def events(user: UserService) -> list[tuple[str, str]]:
    """Type and key of all events in the outbox, oldest first."""

    async def read(tx: Transaction) -> list[tuple[str, str]]:
        rows = await tx.execute(select(outbox.c.type, outbox.c.aggregateid).order_by(outbox.c.seq))
        return [(str(kind).rpartition(".")[2], str(key)) for kind, key in rows]

    return await user.database.run(read, read_only=True)


async def test_the_migrations_make_the_tables_that_the_code_uses(user: UserService) -> None:
    assert await drift(user.database, Base.metadata) == []


async def test_somebody_registers_logs_in_and_sees_the_profile(user: UserService) -> None:
    registered = await user.register(name="Ada Lovelace")
    assert (registered.email, registered.name, registered.roles) == ("ada@billpay.example", "Ada Lovelace", ["member"])
    with bearing(await user.log_in()):
        assert await user.users.me() == registered


async def test_the_access_token_says_who_and_what(user: UserService) -> None:
    registered = await user.register()
    tokens = await user.log_in()
    assert (tokens.token_type, tokens.expires_in) == ("Bearer", 600)
    principal = await user.principal(tokens)
    assert principal.subject == str(registered.id)
    assert principal.roles == {"member"}
    assert UUID(principal.session).version == 4


async def test_the_keys_are_published_without_their_private_part(user: UserService) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{user.instance.url}/.well-known/jwks.json") as response,
    ):
        assert response.status == 200
        assert response.headers["Cache-Control"] == "public, max-age=300"
        keys = json.loads(await response.read())["keys"]
    assert [key["kty"] for key in keys] == ["OKP"]
    assert all("d" not in key for key in keys)


async def test_a_password_is_kept_as_its_hash_only(user: UserService) -> None:
    await user.register()
    stored = await user.database.run(lambda tx: tx.scalar(select(AccountRow.password_hash)), read_only=True)
    assert stored is not None
    assert stored.startswith("$argon2id$")
    assert PASSWORD not in stored


async def test_an_address_has_one_account(user: UserService) -> None:
    await user.register()
    for again in ("ada@billpay.example", "ADA@BillPay.example"):
        with pytest.raises(EmailTaken):
            await user.register(again)


async def test_of_many_registrations_of_one_address_at_once_one_succeeds(user: UserService) -> None:
    ended = await asyncio.gather(*(user.register() for _ in range(10)), return_exceptions=True)
    refused = [one for one in ended if isinstance(one, BaseException)]
    assert len(refused) == 9
    assert all(isinstance(one, EmailTaken) for one in refused)
    assert [kind for kind, _ in await events(user)] == ["UserRegistered"]


async def test_registering_is_told_to_others_in_the_same_transaction(user: UserService) -> None:
    registered = await user.register()
    with pytest.raises(EmailTaken):
        await user.register()
    with pytest.raises(WeakPassword):
        await user.register("eve@billpay.example", "password")
    assert await events(user) == [("UserRegistered", str(registered.id))]


async def test_a_weak_password_is_refused_with_its_reason(user: UserService) -> None:
    for password in ("seven_c", "password", "iloveyou", "ada@billpay.example", "aaaaaaaa", "x" * 129):
        with pytest.raises(WeakPassword) as caught:
            await user.register(password=password)
        assert caught.value.detail
    assert await events(user) == []


async def test_what_is_no_registration_is_refused_and_no_password_comes_back(user: UserService) -> None:
    good: dict[str, object] = {"email": "ada@billpay.example", "password": PASSWORD, "name": "Ada"}
    bad: list[dict[str, object]] = [
        {**good, "email": "no-address"},
        {**good, "email": ["ada@billpay.example"]},
        {**good, "name": ""},
        {**good, "name": "x" * 101},
        {**good, "roles": ["admin"]},
        {**good, "is_admin": True},
        {**good, "password": 12345678},
        {"email": "ada@billpay.example", "password": PASSWORD},
    ]
    async with aiohttp.ClientSession() as session:
        for body in bad:
            async with session.post(f"{user.instance.url}/users", json=body) as response:
                assert response.status == 422, body
                assert response.content_type == "application/problem+json"
                assert PASSWORD not in await response.text()
    assert await events(user) == []


async def test_one_changes_ones_own_name_and_nothing_else(user: UserService) -> None:
    await user.register()
    tokens = await user.log_in()
    with bearing(tokens):
        assert (await user.users.change_profile(ProfileChange(name="Countess"))).name == "Countess"
        assert (await user.users.me()).name == "Countess"
    headers = {"Authorization": f"Bearer {tokens.access_token}"}
    for extra in ({"roles": ["admin"]}, {"email": "x@billpay.example"}, {"id": str(uuid4())}):
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.patch(f"{user.instance.url}/users/me", json={"name": "x", **extra}) as response,
        ):
            assert response.status == 422


async def test_an_administrator_assigns_roles_in_force_with_the_next_token(user: UserService) -> None:
    ada = await user.register()
    tokens = await user.log_in()
    root = await admin(user)
    with bearing(root):
        changed = await user.users.assign_roles(ada.id, RoleChange(roles=["biller", "member", "biller"]))
    assert changed.roles == ["biller", "member"]
    assert (await user.principal(tokens)).roles == {"member"}
    assert (await user.principal(await user.log_in())).roles == {"biller", "member"}
    assert (await events(user))[-1] == ("RolesAssigned", str(ada.id))
    with bearing(root):
        assert (await user.users.assign_roles(ada.id, RoleChange(roles=[]))).roles == []


async def test_assigning_the_same_roles_again_changes_nothing(user: UserService) -> None:
    ada = await user.register()
    with bearing(await admin(user)):
        for _ in range(2):
            assert (await user.users.assign_roles(ada.id, RoleChange(roles=["member", "biller"]))).roles == [
                "biller",
                "member",
            ]


async def test_nobody_becomes_a_service(user: UserService) -> None:
    ada = await user.register()
    with bearing(await admin(user)), pytest.raises(RemoteProblem) as caught:
        await user.users.assign_roles(ada.id, RoleChange(roles=["member", "service"]))
    assert caught.value.status == 422
    assert (await user.principal(await user.log_in())).roles == {"member"}


async def test_a_role_is_a_plain_word(user: UserService) -> None:
    ada = await user.register()
    headers = {"Authorization": f"Bearer {(await admin(user)).access_token}"}
    url = f"{user.instance.url}/users/{ada.id}/roles"
    async with aiohttp.ClientSession(headers=headers) as session:
        for role in ("*", "+", "Admin", "a", "admin,member", "a" * 40, ""):
            async with session.put(url, json={"roles": [role]}) as response:
                assert response.status == 422, role


async def test_the_last_administrator_stays(user: UserService) -> None:
    root = await admin(user)
    with bearing(root):
        me = await user.users.me()
        with pytest.raises(Conflict, match="last administrator"):
            await user.users.assign_roles(me.id, RoleChange(roles=["member"]))
        ada = await user.register()
        await user.users.assign_roles(ada.id, RoleChange(roles=["admin"]))
        await user.users.assign_roles(me.id, RoleChange(roles=["member"]))


async def test_the_last_two_administrators_cannot_dismiss_each_other_at_once(user: UserService) -> None:
    root = await admin(user)
    ada = await user.register()
    with bearing(root):
        me = await user.users.me()
        for _ in range(5):
            for account in (me, ada):
                await user.users.assign_roles(account.id, RoleChange(roles=["admin"]))
            ended = await asyncio.gather(
                user.users.assign_roles(me.id, RoleChange(roles=["member"])),
                user.users.assign_roles(ada.id, RoleChange(roles=["member"])),
                return_exceptions=True,
            )
            refused = [one for one in ended if isinstance(one, BaseException)]
            assert len(refused) == 1
            assert isinstance(refused[0], Conflict)


async def test_an_unknown_account_gets_no_roles(user: UserService) -> None:
    with bearing(await admin(user)), pytest.raises(NotFound):
        await user.users.assign_roles(uuid4(), RoleChange(roles=["member"]))


async def test_administrators_list_accounts_page_by_page(user: UserService) -> None:
    root = await admin(user)
    names = [f"user{number}@billpay.example" for number in range(7)]
    for name in names:
        await user.register(name)
    seen: list[str] = []
    page = PageRequest(limit=3)
    with bearing(root):
        while True:
            found = await user.users.list(page)
            assert len(found.items) <= 3
            seen += [one.email for one in found.items]
            if found.next_cursor is None:
                break
            page = PageRequest(limit=3, cursor=found.next_cursor)
    assert seen == [ROOT, *names]
    assert found.items[-1].roles == ["member"]


async def test_who_may_do_what(user: UserService) -> None:
    """Every operation as nobody, as a member, as somebody with no role, and as a forger."""
    ada = await user.register()
    member = await user.log_in()
    with bearing(await admin(user)):
        bob = await user.register("bob@billpay.example")
        await user.users.assign_roles(bob.id, RoleChange(roles=[]))
    nothing = await user.log_in("bob@billpay.example")
    header, payload, signature = member.access_token.split(".")
    calls = [
        ("GET", "/users/me", None, 200, 403),
        ("PATCH", "/users/me", {"name": "x"}, 200, 403),
        ("GET", "/users", None, 403, 403),
        ("PUT", f"/users/{ada.id}/roles", {"roles": ["admin"]}, 403, 403),
        ("PUT", f"/users/{bob.id}/roles", {"roles": ["admin"]}, 403, 403),
        ("DELETE", "/sessions/current", None, 204, 403),
    ]
    async with aiohttp.ClientSession() as session:
        for method, path, body, as_member, as_nothing in calls:
            for token, expected in (
                (None, 401),
                ("made.up.token", 401),
                (f"{header}.{payload}.{signature[::-1]}", 401),
                (nothing.access_token, as_nothing),
                (member.access_token, as_member),
            ):
                headers = {"Authorization": f"Bearer {token}"} if token else {}
                url = user.instance.url + path
                async with session.request(method, url, json=body, headers=headers) as response:
                    assert response.status == expected, (method, path, expected, await response.text())
                    if expected == 401:
                        assert response.headers["WWW-Authenticate"].startswith("Bearer")


async def test_the_settings_make_the_first_administrator_once(start: Start) -> None:
    settings = {"admin_email": ROOT, "admin_password": ROOT_PASSWORD}
    async with start(**settings) as user:
        tokens = await user.log_in(ROOT, ROOT_PASSWORD)
        assert (await user.principal(tokens)).roles == {"admin", "member"}
    async with start(admin_email=ROOT, admin_password="quite another one 7") as user:
        await user.log_in(ROOT, ROOT_PASSWORD)
        with pytest.raises(BadCredentials):
            await user.log_in(ROOT, "quite another one 7")
        assert [kind for kind, _ in await events(user)] == ["UserRegistered"]


async def test_wrong_settings_keep_it_from_starting(start: Start) -> None:
    wrong: list[tuple[dict[str, object], str]] = [
        ({"admin_email": ROOT, "admin_password": "iloveyou"}, "USER_ADMIN_PASSWORD"),
        ({"admin_email": ROOT}, "USER_ADMIN_EMAIL and USER_ADMIN_PASSWORD belong together"),
        ({"auth_audience": None}, "USER_AUTH_AUDIENCE"),
        ({"auth_issuer": None}, "auth_issuer"),
        ({"signing_keys": '{"keys": [        ]}'}, "USER_SIGNING_KEYS: there are no keys"),
        ({"signing_keys": '{"keys": [{"kty": "oct", "k": "AAAA", "kid": "x"}]}'}, "neither Ed25519 nor P-256"),
        ({"signing_keys": "/nowhere/at-all/keys.json"}, "USER_SIGNING_KEYS: the key file cannot be read"),
        ({"access_lifetime": 3600}, "USER_ACCESS_LIFETIME"),
        ({"environment": "production", "allowed_hosts": ["user.example"]}, "USER_SIGNING_KEYS is missing"),
    ]
    for settings, message in wrong:
        with pytest.raises(ConfigurationError, match=message):
            async with start(**settings):
                pass


async def test_no_secret_shows_in_the_settings(start: Start) -> None:
    async with start(admin_email=ROOT, admin_password=ROOT_PASSWORD) as user:
        assert ROOT_PASSWORD not in repr(user.instance.settings)
        assert ROOT_PASSWORD not in str(user.instance.settings.model_dump())


async def posted(user: UserService, key: str | None, **changed: str) -> tuple[int, dict[str, Any]]:
    body = {"email": "ada@billpay.example", "name": "Ada", "password": PASSWORD, **changed}
    headers = {"Idempotency-Key": key} if key else {}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{user.instance.url}/users", json=body) as response,
    ):
        return response.status, json.loads(await response.read())


async def test_a_registration_whose_answer_was_lost_is_sent_again_with_its_key(user: UserService) -> None:
    first = await posted(user, "k-1")
    assert first[0] == 201
    assert await posted(user, "k-1") == first

    at_once = await asyncio.gather(*(posted(user, "k-2", email="eve@billpay.example") for _ in range(5)))
    assert at_once == [at_once[0]] * 5
    assert at_once[0][0] == 201


async def test_another_registration_under_the_key_finds_the_address_taken(user: UserService) -> None:
    assert (await posted(user, "k-1"))[0] == 201
    for key, changed in [
        (None, {}),
        ("k-2", {}),
        ("k-1", {"name": "Eve"}),
        ("k-1", {"password": "quite another one 7"}),
    ]:
        assert (await posted(user, key, **changed))[0] == 409, (key, changed)


async def test_a_registration_is_remembered_for_a_day(user: UserService) -> None:
    await posted(user, "k-1")

    async def age(tx: Transaction) -> None:
        await tx.execute(update(AccountRow).values(created_at=datetime.now(UTC) - domain.REMEMBERED))

    await user.database.run(age)
    assert (await posted(user, "k-1"))[0] == 409


async def test_guessing_a_password_by_registering_again_counts_as_at_log_in(user: UserService) -> None:
    await posted(user, "k-1")
    guesses = [await posted(user, "k-1", password=f"guess number {n}") for n in range(6)]
    assert [status for status, _ in guesses] == [409] * 5 + [429]
    with pytest.raises(TooManyAttempts):
        await user.log_in()


async def test_no_digest_of_the_password_is_kept_for_the_repetition(user: UserService) -> None:
    """What is kept is told by key, address and name alone: it is the same whatever the password was."""
    await posted(user, "k-1")
    kept = await user.database.run(lambda tx: tx.scalar(select(AccountRow.registration)), read_only=True)
    assert kept == domain.registration("k-1", "ada@billpay.example", "Ada")
    remembered = await user.database.run(
        lambda tx: tx.scalar(select(func.count()).select_from(idempotency)), read_only=True
    )
    assert remembered == 0
