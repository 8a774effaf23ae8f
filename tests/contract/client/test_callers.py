"""What a typed call puts on the wire and makes of the answer: the same over HTTP and in process."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID, uuid4

import aiohttp
import jwt
import orjson
import pytest
from pydantic import BaseModel, Field, SecretStr

from microkit.auth import ServiceTokens, SigningKey
from microkit.client import HttpCaller, InProcessCaller, Upstream, connect
from microkit.context import WorkContext, working
from microkit.contract import ANYONE, SERVICE, Caller, Contract, Header, delete, get, patch, post, put
from microkit.discovery.port import Endpoint
from microkit.errors import BadGateway, DeadlineExceeded, NotFound, Problem, RemoteProblem
from microkit.page import Page, PageRequest
from microkit.settings.clients import ClientSettings
from microkit.telemetry import Telemetry

pytestmark = pytest.mark.anyio

ID = UUID("0b54ad2e-0f6a-4a0c-9c65-1c8e0a4a9f10")


class Kind(StrEnum):
    SMALL = "small"
    LARGE = "large & round"


class NameTaken(Problem, status=409, title="The name is taken"): ...


class Slow(Problem, status=429): ...


class Picky(Problem, status=422):
    def __init__(self, *, must_be_given: int) -> None:
        super().__init__(f"{must_be_given}")


class NewThing(BaseModel):
    name: str
    price: Decimal = Decimal("1.10")
    at: datetime | None = None
    kind: Kind = Kind.SMALL
    parts: list[UUID] = []
    shelf_mark: Annotated[str | None, Field(alias="shelfMark")] = None


class Thing(BaseModel):
    id: UUID
    price: Decimal


class Login(BaseModel):
    name: str
    password: SecretStr
    hints: dict[str, SecretStr] = {}


class Things(Contract, service="things", prefix="/things", allow="member"):
    @post("", status=201, raises=(NameTaken, Slow, Picky))
    async def create(self, body: NewThing) -> Thing: ...

    @get("/{thing_id}", raises=(NotFound,))
    async def read(self, thing_id: UUID) -> Thing: ...

    @get("/by-name/{name}/{number}")
    async def by_name(self, name: str, number: int) -> Thing: ...

    @get("")
    async def search(
        self,
        page: PageRequest,
        kind: Kind | None = None,
        tag: list[str] = [],  # noqa: B006  as people write it
        since: datetime | None = None,
        exact: bool = False,
    ) -> Page[Thing]: ...

    @put("/{thing_id}")
    async def replace(
        self, thing_id: UUID, body: NewThing, if_match: Annotated[str | None, Header("If-Match")] = None
    ) -> Thing: ...

    @patch("/{thing_id}")
    async def change(self, thing_id: UUID, body: dict[str, str | None]) -> Thing: ...

    @delete("/{thing_id}", status=204)
    async def remove(self, thing_id: UUID) -> None: ...

    @post("/login", allow=ANYONE)
    async def log_in(self, body: Login) -> Thing: ...

    @post("/{thing_id}/settle", allow=SERVICE, idempotent=True)
    async def settle(self, thing_id: UUID) -> Thing: ...

    @post("/poke", allow=("member", SERVICE), timeout=0.5)
    async def poke(self) -> Thing: ...


class Everywhere:
    """A resolver of fixed endpoints."""

    def __init__(self, *urls: str) -> None:
        self.urls = urls

    async def resolve(self, service: str) -> list[Endpoint]:
        assert service == "things"
        return [Endpoint(url) for url in self.urls]


@pytest.fixture(scope="module")
def tokens() -> ServiceTokens:
    return ServiceTokens("shop", SigningKey.generate("service:shop"), "system")


Make = Callable[..., Caller]


@pytest.fixture(params=["http", "in-process"])
def make(request: pytest.FixtureRequest, recorder: Any, recorder_url: str, session: aiohttp.ClientSession) -> Make:
    def over_http(tokens: ServiceTokens | None = None) -> Caller:
        telemetry = Telemetry("shop")
        return HttpCaller(
            Upstream("things", resolver=Everywhere(recorder_url), telemetry=telemetry),
            session=session,
            telemetry=telemetry,
            tokens=tokens,
            timeout=8.0,
            clients={"things": ClientSettings(attempts=1)},
        )

    def in_process(tokens: ServiceTokens | None = None) -> Caller:
        return InProcessCaller(recorder, tokens=tokens, timeout=8.0)

    return over_http if request.param == "http" else in_process


@pytest.fixture
def things(make: Make, recorder: Any) -> Things:
    recorder.reply = {"id": str(ID), "price": "2.50"}
    return connect(Things, make())


async def test_a_body_is_sent_and_the_result_is_validated(things: Things, recorder: Any) -> None:
    at = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    thing = await things.create(NewThing(name="Größe", price=Decimal("0.10"), at=at, parts=[ID], shelfMark="A"))
    assert thing == Thing(id=ID, price=Decimal("2.50"))
    assert (recorder.last.method, recorder.last.raw_path, recorder.last.query) == ("POST", "/things", "")
    assert recorder.last.headers["content-type"] == "application/json"
    assert orjson.loads(recorder.last.body) == {
        "name": "Größe",
        "price": "0.10",
        "at": "2026-03-01T12:30:00Z",
        "kind": "small",
        "parts": [str(ID)],
        "shelfMark": "A",
    }


async def test_arguments_may_be_given_by_place_or_by_name(things: Things, recorder: Any) -> None:
    await things.read(ID)
    await things.read(thing_id=ID)
    assert {received.raw_path for received in recorder.received} == {f"/things/{ID}"}
    assert all(received.body == b"" and "content-type" not in received.headers for received in recorder.received)


@pytest.mark.parametrize(
    ("name", "on_the_wire"),
    [
        ("plain", "plain"),
        ("a/b", "a%2Fb"),
        ("a b", "a%20b"),
        ("100%", "100%25"),
        ("%2e%2e%2fadmin", "%252e%252e%252fadmin"),
        ("a?x=1#y", "a%3Fx%3D1%23y"),
        ("ö", "%C3%B6"),
        ("a;b=c:d@e+f", "a%3Bb%3Dc%3Ad%40e%2Bf"),
        ("...", "..."),
        ("{number}", "%7Bnumber%7D"),
    ],
)
async def test_an_argument_stays_within_its_part_of_the_path(
    things: Things, recorder: Any, name: str, on_the_wire: str
) -> None:
    await things.by_name(name, 7)
    assert recorder.last.raw_path == f"/things/by-name/{on_the_wire}/7"
    assert recorder.last.query == ""


@pytest.mark.parametrize("name", ["", ".", ".."])
async def test_an_argument_that_would_change_the_path_is_not_sent(things: Things, recorder: Any, name: str) -> None:
    with pytest.raises(ValueError, match="'name' cannot stand in a path"):
        await things.by_name(name, 7)
    assert recorder.received == []


async def test_a_query_holds_what_is_given_and_nothing_else(things: Things, recorder: Any) -> None:
    recorder.reply = {"items": [], "next_cursor": None}
    assert await things.search(PageRequest()) == Page[Thing](items=[])
    assert recorder.last.query == "limit=20"
    await things.search(
        PageRequest(limit=5, cursor="ab-_"),
        kind=Kind.LARGE,
        tag=["x", "y&z", ""],
        since=datetime(2026, 3, 1, tzinfo=UTC),
        exact=True,
    )
    assert recorder.last.query == (
        "limit=5&cursor=ab-_&kind=large+%26+round&tag=x&tag=y%26z&tag=&since=2026-03-01T00%3A00%3A00Z&exact=true"
    )
    await things.search(PageRequest(), kind=None, exact=False)
    assert recorder.last.query == "limit=20&exact=false"


async def test_a_header_argument_goes_into_its_header(things: Things, recorder: Any) -> None:
    await things.replace(ID, NewThing(name="x"), '"v1"')
    assert recorder.last.headers["if-match"] == '"v1"'
    await things.replace(ID, NewThing(name="x"))
    assert "if-match" not in recorder.last.headers


@pytest.mark.parametrize("text", ["a\r\nX-Admin: 1", "a\nb", "a\0", "ö"])
async def test_an_argument_cannot_break_out_of_its_header(things: Things, recorder: Any, text: str) -> None:
    with pytest.raises(ValueError, match="cannot stand in a header"):
        await things.replace(ID, NewThing(name="x"), text)
    assert recorder.received == []


async def test_an_empty_answer_is_none(things: Things, recorder: Any) -> None:
    recorder.status, recorder.raw = 204, b""
    recorder.headers = {"content-length": "0"}
    assert await things.remove(ID) is None  # type: ignore[func-returns-value]  # that is the point
    assert recorder.last.method == "DELETE"


async def test_null_in_a_body_is_sent(things: Things, recorder: Any) -> None:
    await things.change(ID, {"name": None, "note": "x"})
    assert orjson.loads(recorder.last.body) == {"name": None, "note": "x"}


async def test_a_secret_is_sent_as_it_is(things: Things, recorder: Any) -> None:
    body = Login(name="a", password=SecretStr('p"ä\u2028'), hints={"pet": SecretStr("rex")})
    await things.log_in(body)
    assert orjson.loads(recorder.last.body) == {"name": "a", "password": 'p"ä\u2028', "hints": {"pet": "rex"}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "misses the arguments thing_id"),
        ({"thing_id": ID, "thing": 1}, "has no parameters thing"),
        ({"thing_id": "not-a-uuid"}, "argument 'thing_id'"),
    ],
)
async def test_wrong_arguments_are_the_callers_mistake_and_are_not_sent(
    make: Make, recorder: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        await make().call(Things.read, arguments)
    with pytest.raises(TypeError, match="argument 'body'"):
        await make().call(Things.create, {"body": {"name": 7}})
    assert recorder.received == []


async def test_a_declared_problem_is_raised_as_its_class(things: Things, recorder: Any) -> None:
    recorder.status = 409
    recorder.reply = {
        "type": "urn:problem:name-taken",
        "title": "The name is taken",
        "status": 409,
        "detail": "x is taken",
        "instance": "/things",
        "trace_id": "ab",
        "by": "somebody",
    }
    with pytest.raises(NameTaken) as caught:
        await things.create(NewThing(name="x"))
    assert caught.value.detail == "x is taken"
    assert caught.value.extensions == {"by": "somebody"}
    assert caught.value.headers == {}


async def test_a_problem_keeps_when_to_come_back(things: Things, recorder: Any) -> None:
    recorder.status, recorder.headers = 429, {"retry-after": "17"}
    recorder.reply = {"type": "urn:problem:slow", "status": 429, "detail": 7}
    with pytest.raises(Slow) as caught:
        await things.create(NewThing(name="x"))
    assert caught.value.headers == {"Retry-After": "17"}
    assert caught.value.detail is None


async def test_a_problem_with_a_constructor_of_its_own_can_be_raised(things: Things, recorder: Any) -> None:
    recorder.status = 422
    recorder.reply = {"type": "urn:problem:picky", "status": 422, "detail": "because"}
    with pytest.raises(Picky) as caught:
        await things.create(NewThing(name="x"))
    assert caught.value.detail == "because"


@pytest.mark.parametrize(
    ("status", "raw", "kind"),
    [
        (404, b'{"type": "urn:problem:not-found", "status": 404}', "urn:problem:not-found"),
        (400, b'{"type": "urn:problem:name-taken", "status": 400}', "urn:problem:name-taken"),
        (500, b'{"type": "urn:problem:internal-error", "detail": "x"}', "urn:problem:internal-error"),
        (503, b"<html>no upstream</html>", "about:blank"),
        (502, b"", "about:blank"),
        (403, b"[1, 2]", "about:blank"),
        (409, b'"text"', "about:blank"),
        (401, b"\xff\xfe", "about:blank"),
        (304, b"", "about:blank"),
        (302, b"", "about:blank"),
    ],
)
async def test_any_other_failure_is_a_remote_problem(
    things: Things, recorder: Any, status: int, raw: bytes, kind: str
) -> None:
    recorder.status, recorder.raw = status, raw
    if status == 302:
        recorder.headers = {"location": "/things/elsewhere"}
    with pytest.raises(RemoteProblem) as caught:
        await things.create(NewThing(name="x"))
    error = caught.value
    assert (error.service, error.operation, error.status, error.type) == ("things", "create", status, kind)
    assert len(recorder.received) == 1


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"", "Invalid JSON"),
        (b"<html>", "Invalid JSON"),
        (b'{"id": "0b54ad2e-0f6a-4a0c-9c65-1c8e0a4a9f10", "pri', "Invalid JSON"),
        (b"null", "object"),
        (b'{"id": "x", "price": "1"}', "at id"),
        (b'{"id": "0b54ad2e-0f6a-4a0c-9c65-1c8e0a4a9f10"}', "at price"),
        (b"[" * 5000, "Invalid JSON"),
        (b'{"id": "\xff"}', "Invalid JSON"),
    ],
    ids=["empty", "html", "half", "null", "bad-id", "missing", "deep", "not-utf8"],
)
async def test_a_success_that_is_not_the_result_is_a_bad_gateway(
    things: Things, recorder: Any, raw: bytes, where: str
) -> None:
    recorder.raw = raw
    with pytest.raises(BadGateway, match=where) as caught:
        await things.read(ID)
    assert "things answered Things.read" in str(caught.value)


async def test_the_trace_goes_along(make: Make, recorder: Any) -> None:
    recorder.reply = {"id": str(ID), "price": "1"}
    telemetry = Telemetry("shop")
    with telemetry.span("outer") as outer:
        trace_id = f"{outer.get_span_context().trace_id:032x}"
        await connect(Things, make()).read(ID)
    assert recorder.last.headers["traceparent"].split("-")[1] == trace_id


async def test_the_deadline_goes_along(things: Things, recorder: Any) -> None:
    await things.read(ID)
    assert 7000 < int(recorder.last.headers["request-timeout-ms"]) <= 8000
    await things.poke()
    assert 400 < int(recorder.last.headers["request-timeout-ms"]) <= 500
    with working(WorkContext(deadline=time.monotonic() + 3)):
        await things.read(ID)
        assert 2000 < int(recorder.last.headers["request-timeout-ms"]) <= 3000
    with working(WorkContext(deadline=time.monotonic() + 300)):
        await things.read(ID)
        assert 7000 < int(recorder.last.headers["request-timeout-ms"]) <= 8000


async def test_nothing_is_sent_once_the_deadline_has_passed(things: Things, recorder: Any) -> None:
    with working(WorkContext(deadline=time.monotonic() - 1)), pytest.raises(DeadlineExceeded):
        await things.read(ID)
    assert recorder.received == []


async def test_the_callers_token_goes_along(make: Make, recorder: Any, tokens: ServiceTokens) -> None:
    recorder.reply = {"id": str(ID), "price": "1"}
    things = connect(Things, make(tokens))
    with working(WorkContext(bearer="callers.own.token")):
        for call in (things.read(ID), things.poke(), things.log_in(Login(name="a", password=SecretStr("b")))):
            await call
            assert recorder.last.headers["authorization"] == "Bearer callers.own.token"


async def test_a_service_calls_in_its_own_name_where_nobody_else_does_or_may(
    make: Make, recorder: Any, tokens: ServiceTokens
) -> None:
    recorder.reply = {"id": str(ID), "price": "1"}
    things = connect(Things, make(tokens))
    await things.read(ID)
    with working(WorkContext(bearer="callers.own.token")):
        await things.settle(ID)
    for received in recorder.received:
        claims = jwt.decode(
            received.headers["authorization"].removeprefix("Bearer "), options={"verify_signature": False}
        )
        assert claims["sub"] == "service:shop"


async def test_without_a_caller_and_a_key_there_is_no_token(things: Things, recorder: Any) -> None:
    await things.read(ID)
    assert "authorization" not in recorder.last.headers


async def test_each_unsafe_call_has_an_idempotency_key_of_its_own(things: Things, recorder: Any) -> None:
    for _ in range(3):
        await things.create(NewThing(name="x"))
    keys = {received.headers["idempotency-key"] for received in recorder.received}
    assert len(keys) == 3
    assert all(UUID(key).version == 4 for key in keys)


async def test_work_done_again_asks_with_the_same_key(things: Things, recorder: Any) -> None:
    with working(WorkContext(idempotency_key="saga-1:reserve")):
        await things.create(NewThing(name="x"))
        await things.change(ID, {})
    assert [received.headers["idempotency-key"] for received in recorder.received] == ["saga-1:reserve"] * 2
    with working(WorkContext(idempotency_key="x" * 300)):
        await things.create(NewThing(name="x"))
    assert len(recorder.last.headers["idempotency-key"]) == 64


async def test_what_may_be_repeated_anyway_has_no_key(things: Things, recorder: Any) -> None:
    with working(WorkContext(idempotency_key="saga-1:reserve")):
        await things.read(ID)
        await things.replace(ID, NewThing(name="x"))
        await things.settle(ID)
    assert all("idempotency-key" not in received.headers for received in recorder.received)


async def test_the_request_id_goes_along(things: Things, recorder: Any) -> None:
    request_id = str(uuid4())
    with working(WorkContext(request_id=request_id)):
        await things.read(ID)
    assert recorder.last.headers["x-request-id"] == request_id
    await things.read(ID)
    assert "x-request-id" not in recorder.last.headers
