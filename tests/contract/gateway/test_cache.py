"""Answers that a gateway keeps: fresh, stale, renewed, and never somebody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Path

from microkit.contract import SIGNED_IN
from microkit.gateway import Route
from microkit.gateway.caching.redis import RedisStore
from microkit.gateway.caching.store import CacheStore, MemoryStore
from microkit.gateway.filters import Compress, ResponseCache

pytestmark = pytest.mark.anyio


class Shelf:
    """A service whose answers are told beforehand; it counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.headers: dict[str, str] = {"Cache-Control": "max-age=60"}
        self.status = 200
        self.app = Starlette(routes=[Path("/{path:path}", self._answer, methods=["GET", "HEAD", "POST"])])

    async def _answer(self, request: Request) -> Response:
        self.asked.append(dict(request.headers))
        etag = self.headers.get("ETag")
        if etag is not None and request.headers.get("If-None-Match") == etag and self.status == 200:
            return Response(status_code=304, headers=self.headers)
        body = f"{len(self.asked)} {request.headers.get('Accept-Language')}".encode()
        return Response(body, self.status, headers=self.headers, media_type="text/plain")


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CacheStore]:
    if request.param == "memory":
        yield MemoryStore(1_000_000)
    else:
        # A server that answers late is one that is away, and then nothing is kept: not what these tests are about.
        monkeypatch.setattr("microkit.gateway.caching.redis.PATIENCE", 30.0)
        url = request.getfixturevalue("valkey_server").url
        found = RedisStore(url, prefix=f"{uuid4().hex}:")
        yield found
        await found.close()


async def started(start: Any, shelf: Shelf, store: CacheStore | None = None, **options: Any) -> Any:
    routes = [
        Route("/open", "shelf", filters=(ResponseCache(**options),)),
        Route("/own", "shelf", allow=SIGNED_IN, filters=(ResponseCache(**options),)),
    ]
    return await start(routes, {"shelf": shelf.app}, cache=store)


async def get(gateway: Any, path: str = "/open", method: str = "GET", **headers: str) -> tuple[int, bytes, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with gateway.client.request(method, gateway.url + path, headers=named) as response:
        return response.status, await response.read(), response.headers


async def test_a_fresh_answer_is_given_again_with_its_age_and_a_tag(
    start: Any, shelf: Shelf, store: CacheStore
) -> None:
    gateway = await started(start, shelf, store)
    _, first, told = await get(gateway)
    status, second, headers = await get(gateway)
    assert (status, first, len(shelf.asked)) == (200, second, 1)
    assert (headers["Cache-Status"], "Age" in headers) == ("microkit; hit", True)
    assert headers["ETag"] == told["ETag"]
    status, body, _ = await get(gateway, If_None_Match=f'"other", W/{headers["ETag"]}')
    assert (status, body) == (304, b"")
    status, body, headers = await get(gateway, method="HEAD")
    assert (status, body, headers["Content-Length"], len(shelf.asked)) == (200, b"", str(len(first)), 1)
    assert (await get(gateway, "/open?page=2"))[1] != first, "another query is another answer"


async def test_answers_are_told_apart_by_what_they_vary_by(start: Any, shelf: Shelf, store: CacheStore) -> None:
    shelf.headers["Vary"] = "Accept-Language"
    gateway = await started(start, shelf, store)
    for _ in range(2):
        assert (await get(gateway, Accept_Language="de"))[1] == b"1 de"
        assert (await get(gateway, Accept_Language="en"))[1] == b"2 en"
    assert len(shelf.asked) == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"Cache-Control": "private, max-age=60"},
        {"Cache-Control": "no-store"},
        {"Cache-Control": "max-age=60", "Set-Cookie": "session=1"},
        {"Cache-Control": "max-age=60", "Vary": "*"},
        {},
    ],
)
async def test_what_may_not_be_shared_is_asked_for_each_time(start: Any, shelf: Shelf, headers: dict[str, str]) -> None:
    shelf.headers = headers
    gateway = await started(start, shelf)
    for _ in range(2):
        await get(gateway)
    assert len(shelf.asked) == 2


async def test_one_users_answer_is_never_given_to_another(start: Any, shelf: Shelf) -> None:
    gateway = await started(start, shelf, default=60)
    shelf.headers = {}
    found = [(await get(gateway, "/own", Authorization=f"Bearer {who}"))[1] for who in ("alice", "root", "alice")]
    assert found == [b"1 None", b"2 None", b"3 None"]
    await get(gateway, "/open", Authorization="Bearer alice")
    await get(gateway, "/open", Cookie="session=1")
    assert (await get(gateway, "/open"))[1] == b"6 None"
    shelf.headers = {"Cache-Control": "public, max-age=60"}
    assert (await get(gateway, "/own?x", Authorization="Bearer alice"))[1] == b"7 None"
    assert (await get(gateway, "/own?x", Authorization="Bearer root"))[1] == b"7 None", "the service says it is public"
    assert (await get(gateway, "/own?x"))[0] == 401, "and still only to those who may"


async def test_a_client_may_ask_past_the_cache_and_for_the_cache_alone(start: Any, shelf: Shelf) -> None:
    gateway = await started(start, shelf)
    assert (await get(gateway, Cache_Control="only-if-cached"))[0] == 504
    await get(gateway)
    await get(gateway, Cache_Control="no-cache")
    assert len(shelf.asked) == 2
    assert (await get(gateway, Cache_Control="only-if-cached"))[1] == b"2 None"
    await get(gateway, Range="bytes=0-1")
    assert len(shelf.asked) == 3


async def test_a_change_drops_what_is_kept_for_its_path(start: Any, shelf: Shelf, store: CacheStore) -> None:
    gateway = await started(start, shelf, store)
    await get(gateway)
    await get(gateway, method="POST")
    assert (await get(gateway))[1] == b"3 None"
    shelf.status = 409
    await get(gateway, method="POST")
    assert (await get(gateway))[1] == b"3 None", "a change that was refused changed nothing"


async def test_a_stale_answer_is_renewed_by_its_tag(start: Any, shelf: Shelf, store: CacheStore) -> None:
    shelf.headers = {"Cache-Control": "no-cache", "ETag": '"v1"'}
    gateway = await started(start, shelf, store)
    for _ in range(3):
        status, body, headers = await get(gateway)
        assert (status, body, headers["ETag"]) == (200, b"1 None", '"v1"')
    assert [asked.get("if-none-match") for asked in shelf.asked] == [None, '"v1"', '"v1"']
    assert (await get(gateway, If_None_Match='"v1"'))[0] == 304


async def test_a_stale_answer_stands_in_for_a_failure_for_a_while_only_where_that_is_allowed(
    start: Any, shelf: Shelf
) -> None:
    gateway = await started(start, shelf, stale_if_error=60)
    shelf.headers = {"Cache-Control": "max-age=0", "ETag": '"v1"'}
    await get(gateway)
    await get(gateway, "/open/2", Accept="x")
    shelf.headers = {"Cache-Control": "max-age=0, must-revalidate", "ETag": '"v1"'}
    await get(gateway, "/open/strict")
    shelf.status = 503
    status, body, headers = await get(gateway)
    assert (status, body) == (200, b"1 None")
    assert headers["Cache-Status"] == "microkit; hit; detail=stale-if-error"
    assert (await get(gateway, "/open/strict"))[0] == 503
    assert (await get(gateway, "/open/never-seen"))[0] == 503


async def test_the_cache_is_bounded_and_large_answers_pass_unkept(start: Any) -> None:
    asked = 0

    async def large(_: Request) -> Response:
        nonlocal asked
        asked += 1
        return Response(b"x" * 200_000, headers={"Cache-Control": "max-age=60"})

    store = MemoryStore(1_000_000)
    route = Route("/open", "shelf", filters=(ResponseCache(entry=100_000, total=1_000_000),))
    gateway = await start([route], {"shelf": Starlette(routes=[Path("/{path:path}", large)])}, cache=store)
    for _ in range(2):
        assert (await get(gateway))[1] == b"x" * 200_000
    assert (asked, store.size) == (2, 0)


async def test_a_kept_answer_is_compressed_for_those_who_take_it(start: Any, shelf: Shelf) -> None:
    route = Route("/open", "shelf", filters=(Compress(least=1), ResponseCache()))
    gateway = await start([route], {"shelf": shelf.app})
    for _ in range(2):
        assert (await get(gateway, Accept_Encoding="gzip"))[2]["Content-Encoding"] == "gzip"
        _, body, headers = await get(gateway, Accept_Encoding="identity")
        assert (body, "Content-Encoding" in headers) == (b"1 None", False)
    assert len(shelf.asked) == 1


async def test_a_store_that_is_away_is_no_cache_and_no_error(start: Any, shelf: Shelf) -> None:
    store = RedisStore("redis://127.0.0.1:1/0")
    gateway = await started(start, shelf, store)
    found = await asyncio.gather(*(get(gateway) for _ in range(5)))
    assert {status for status, _, _ in found} == {200}
    assert len(shelf.asked) == 5
