"""What a shared cache may keep and give out again (RFC 9111)."""

from __future__ import annotations

import pytest

from microkit.gateway.caching.entry import Entry, etag_matches
from microkit.gateway.caching.policy import directives, freshness, may_reuse, may_store, stale_for
from microkit.gateway.caching.store import MemoryStore
from microkit.gateway.exchange import Answer

pytestmark = pytest.mark.anyio


def answer(cache_control: str = "", status: int = 200, **headers: str) -> Answer:
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Answer(status, [(b"cache-control", cache_control.encode()), *given])


def kept(found: Answer, asked: dict[bytes, bytes] | None = None, identified: bool = False) -> bool:
    return may_store(asked or {}, identified, found, directives(found.all(b"cache-control")))


@pytest.mark.parametrize(
    ("cache_control", "found"),
    [
        ("", True),
        ("max-age=60", True),
        ("public", True),
        ("no-store", False),
        ("private", False),
        ('private="set-cookie"', False),
        ("max-age=60, PRIVATE", False),
        ("max-age=60; private", False),
        ('max-age="60"', True),
        ("max-age=60, max-age=9999", False),
        (", ,max-age=60", True),
        ("@@@", False),
    ],
)
def test_only_what_is_not_somebodys_own_is_kept(cache_control: str, found: bool) -> None:
    assert kept(answer(cache_control)) is found


def test_what_was_asked_for_with_proof_of_identity_is_kept_only_where_it_says_public() -> None:
    authorized = {b"authorization": b"Bearer x"}
    for said, may in (
        ("max-age=60", False),
        ("must-revalidate, max-age=60", False),
        ("public", True),
        ("s-maxage=5", True),
    ):
        assert kept(answer(said), authorized) is may
        assert kept(answer(said), {}, identified=True) is may
        assert kept(answer(said), {b"cookie": b"session=1"}) is may


@pytest.mark.parametrize(
    "found",
    [
        answer("public, max-age=60", set_cookie="a=1"),
        answer("public, max-age=60", vary="Accept, *"),
        answer("public, max-age=60", status=206),
        answer("public, max-age=60", status=500),
        answer("public, max-age=60", status=302),
        answer("public, max-age=60", content_range="bytes 0-1/2"),
    ],
)
def test_what_is_one_clients_or_a_part_or_a_failure_is_not_kept(found: Answer) -> None:
    assert not kept(found)


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        (answer("max-age=60"), 60),
        (answer("max-age=60, s-maxage=5"), 5),
        (answer("max-age=-1"), 0),
        (answer("max-age=1.5"), 0),
        (answer("max-age=60, no-cache"), 0),
        (answer("max-age=99999999999999"), 0),
        (answer(expires="Thu, 01 Jan 2026 00:01:00 GMT", date="Thu, 01 Jan 2026 00:00:00 GMT"), 60),
        (answer(expires="0", date="Thu, 01 Jan 2026 00:00:00 GMT"), 0),
        (answer(), 7),
    ],
)
def test_freshness_is_read_as_a_shared_cache_reads_it(found: Answer, seconds: float) -> None:
    assert freshness(found, directives(found.all(b"cache-control")), 7) == seconds


def test_a_client_may_ask_for_something_fresher() -> None:
    assert may_reuse({}, 5, 10)
    assert not may_reuse({}, 10, 10)
    assert not may_reuse(directives("no-cache"), 5, 10)
    assert not may_reuse(directives("max-age=4"), 5, 10)
    assert not may_reuse(directives("min-fresh=6"), 5, 10)


def test_a_stale_answer_stands_in_only_where_nothing_forbids_it() -> None:
    assert stale_for(directives("max-age=1"), 30) == 30
    assert stale_for(directives("max-age=1, stale-if-error=5"), 30) == 5
    for forbidding in ("must-revalidate", "proxy-revalidate", "s-maxage=3", "no-cache"):
        assert stale_for(directives(forbidding), 30) == 0


def test_entity_tags_are_compared_weakly() -> None:
    assert etag_matches(b'W/"a", "b"', b'"a"')
    assert etag_matches(b"*", b'"a"')
    assert not etag_matches(b'"ab"', b'"a"')


def test_an_entry_is_written_and_read_back() -> None:
    entry = Entry(200, [(b"etag", b'"a"'), (b"x", b"\xfc")], b"\x00\xff", 1.5, 0.0, 60.0, 5.0)
    assert Entry.loads(entry.dumps()) == entry


async def test_the_memory_store_holds_no_more_than_it_may_and_lets_the_oldest_go() -> None:
    store = MemoryStore(10_000)
    entry = Entry(200, [], b"x" * 2_000, 0.0, 0.0, 60.0, 0.0)
    for number in range(50):
        await store.keep(f"/{number}", {}, (), entry)
        await store.find("/0", {})
        assert store.size <= 10_000
    assert await store.find("/49", {}) is entry
    assert await store.find("/0", {}) is entry, "what is asked for stays"
    assert await store.find("/10", {}) is None
    for number in range(50):
        await store.keep("/0", {b"accept": str(number).encode()}, ("accept",), entry)
        assert store.size <= 10_000
    await store.close()
    assert store.size == 0


async def test_answers_that_vary_are_found_by_the_headers_they_vary_by() -> None:
    store = MemoryStore(100_000)
    german, english = (Entry(200, [], body, 0.0, 0.0, 60.0, 0.0) for body in (b"de", b"en"))
    await store.keep("/", {b"accept-language": b"de"}, ("accept-language",), german)
    await store.keep("/", {b"accept-language": b"en"}, ("accept-language",), english)
    assert await store.find("/", {b"accept-language": b"de"}) is german
    assert await store.find("/", {b"accept-language": b"en"}) is english
    assert await store.find("/", {b"accept-language": b""}) is None
    assert await store.find("/", {}) is None
    await store.drop("/")
    assert await store.find("/", {b"accept-language": b"de"}) is None
