"""The development issuer: what it gives, and where it refuses to run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from microkit import ConfigurationError, MicrokitError, Principal, Service, System
from microkit.testing.issuer import dev_issuer
from microkit.testing.system import SystemUnderTest, run_system

pytestmark = pytest.mark.anyio

guarded = Service("guarded")


@guarded.get("/me", allow="editor")
async def me(caller: Principal) -> dict[str, object]:
    return {"subject": caller.subject, "roles": sorted(caller.roles)}


SYSTEM = System("guarded-system", [guarded, dev_issuer()], issuer="dev-issuer")


@pytest.fixture
async def running(anyio_backend: str, tmp_path: Path) -> AsyncIterator[SystemUnderTest]:
    async with run_system(SYSTEM, tmp_path) as started:
        yield started


@pytest.fixture
async def session(anyio_backend: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def ask(running: SystemUnderTest, session: aiohttp.ClientSession, token: str | None) -> tuple[int, object]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with session.get(f"{running.urls['guarded']}/me", headers=headers) as answer:
        return answer.status, await answer.json()


async def test_a_token_over_http_lets_its_bearer_in_under_the_name_and_roles_asked_for(
    running: SystemUnderTest, session: aiohttp.ClientSession
) -> None:
    url = f"{running.urls['dev-issuer']}/tokens/ada?role=editor&role=member"
    async with session.post(url) as answer:
        token = await answer.text()

    assert await ask(running, session, token) == (200, {"subject": "ada", "roles": ["editor", "member"]})


async def test_a_token_without_the_role_is_refused_and_none_at_all_too(
    running: SystemUnderTest, session: aiohttp.ClientSession
) -> None:
    assert (await ask(running, session, running.token("bob", "member")))[0] == 403
    assert (await ask(running, session, None))[0] == 401


async def test_a_test_signs_tokens_itself(running: SystemUnderTest, session: aiohttp.ClientSession) -> None:
    token = running.token("ada", "editor")

    assert await ask(running, session, token) == (200, {"subject": "ada", "roles": ["editor"]})


@pytest.mark.parametrize("path", ["ada?role=service", "service:guarded", "service:guarded?role=editor"])
async def test_no_token_is_given_in_the_name_of_a_service(
    running: SystemUnderTest, session: aiohttp.ClientSession, path: str
) -> None:
    async with session.post(f"{running.urls['dev-issuer']}/tokens/{path}") as answer:
        assert answer.status == 400


async def test_a_name_that_a_web_page_points_at_this_machine_gets_no_token(
    running: SystemUnderTest, session: aiohttp.ClientSession
) -> None:
    url = f"{running.urls['dev-issuer']}/tokens/ada?role=editor"
    async with session.post(url, headers={"Host": "evil.example"}) as answer:
        assert answer.status == 421


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"environment": "production"}, "production needs a real one"),
        ({"host": "0.0.0.0"}, "listens on 127.0.0.1"),
        ({"host": "guarded.example.com"}, "listens on 127.0.0.1"),
    ],
)
async def test_it_refuses_to_run_where_strangers_could_ask_it(
    tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        async with run_system(SYSTEM, tmp_path, settings={"dev-issuer": settings}):
            pass


async def test_it_says_that_it_belongs_into_a_system() -> None:
    with pytest.raises(ConfigurationError, match="belongs into a system"):
        async with dev_issuer().instance({"port": 0}):
            pass


async def test_a_system_without_an_issuer_says_how_to_get_one(tmp_path: Path) -> None:
    async with run_system(System("bare", [Service("plain")]), tmp_path) as running:
        with pytest.raises(MicrokitError, match="dev_issuer"):
            running.token("ada")
