"""Times that leave the years 1 to 9999 in UTC, found where they stand and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from inspect import Parameter as Signature
from typing import Annotated, Any

import pytest
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    Field,
    FutureDatetime,
    PastDatetime,
    RootModel,
    TypeAdapter,
)
from starlette.types import Message

from microkit.contract import Parameter, Place
from microkit.errors import ValidationFailed
from microkit.web.body import JsonBody
from microkit.web.call import Call
from microkit.web.instants import off_the_calendar, suspicious
from microkit.web.text import QueryModel, TextParameter

LATE = "9999-12-31T23:59:59-12:00"


class Times(RootModel[list[datetime]]): ...


@dataclass
class Span:
    begin: datetime
    end: datetime


class Inner(BaseModel):
    at: AwareDatetime = Field(alias="when")
    text: str = ""


class Outer(BaseModel, extra="allow"):
    inner: list[Inner] = []
    by_time: dict[datetime, int] = {}
    span: Span | None = None
    times: Times = Times([])
    free: Any = None
    either: datetime | str = ""


@pytest.mark.parametrize(
    ("body", "places"),
    [
        (f'{{"inner":[{{"when":"2026-01-01T00:00:00Z"}},{{"when":"{LATE}"}}]}}', [("inner", 1, "when")]),
        (f'{{"by_time":{{"{LATE}":1}}}}', [("by_time",)]),
        (f'{{"span":{{"begin":"0001-01-01T00:00:00+00:01","end":"{LATE}"}}}}', [("span", "begin"), ("span", "end")]),
        (f'{{"times":["9999-12-31T23:59:59Z","{LATE}"]}}', [("times", 1)]),
        (f'{{"free":["{LATE}"],"inner":[{{"when":"2026-01-01T00:00:00Z","text":"{LATE}"}}],"more":"{LATE}"}}', []),
        (f'{{"either":"{LATE}"}}', [("either",)]),
        ('{"times":["9999-12-31T23:59:59","9999-12-30T23:59:59-23:59"]}', []),
    ],
)
def test_only_times_off_the_calendar_are_found_and_by_the_names_that_were_sent(body: str, places: list[Any]) -> None:
    value = TypeAdapter(Outer).validate_json(body, strict=True)
    assert suspicious(body.encode())
    assert off_the_calendar(value) == places


@pytest.mark.parametrize(
    "text",
    [
        LATE,
        "9999-12-31 23:59-1200",
        "9999-12-31T00:01:00,5-23:59",
        "9999-12-31T23:59:59\u221212:00",
        "0001-01-01T00:00:00+00:01",
        "0001-01-01_23:58+23:59",
        "\\u0039999-12-31T23:59:59-12:00",
        "9999\\u002d12-31T23:59:59-12:00",
        "9999\\u002D12-3\\u0031T23:59:59-12:00",
    ],
)
def test_every_way_to_write_such_a_time_is_suspicious(text: str) -> None:
    body = f'"{text}"'.encode()
    assert off_the_calendar(TypeAdapter(datetime).validate_json(body)) == [()]
    assert suspicious(body)


def test_what_holds_no_such_date_is_not_even_looked_at() -> None:
    assert not suspicious(b'{"name":"x","at":"2026-01-31T12:00:00+02:00","text":"\\u00e9 9999"}')


def test_a_time_off_the_calendar_in_the_query_is_refused_by_its_name() -> None:
    class Between(BaseModel):
        since: datetime | None = None
        word: str | None = None

    moment = TextParameter(Parameter("at", Place.QUERY, datetime, None, "at"))
    word = TextParameter(Parameter("word", Place.QUERY, str, None, "word"))
    model = QueryModel(Parameter("between", Place.QUERY, Between, None, "between"), Between)
    errors: list[dict[str, Any]] = []
    assert word.read([LATE], errors) == LATE
    assert model.read({"word": [LATE]}, errors) == Between(word=LATE)
    assert errors == []
    moment.read([LATE], errors)
    model.read({"since": [LATE], "word": [LATE]}, errors)
    assert [one["pointer"] for one in errors] == ["/at", "/since"]


async def read_json(kind: Any, text: str) -> Any:
    body = text.encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    call = Call({"type": "http"}, receive, {b"content-type": b"application/json"}, {}, 1000, None)
    return await JsonBody(Parameter("body", Place.BODY, kind, Signature.empty, "body"), depth=32).read(call)


Derived = Annotated[Any, AfterValidator(datetime.fromisoformat)]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [datetime, AwareDatetime, PastDatetime | FutureDatetime, datetime | None, Derived])
async def test_no_type_of_a_body_lets_such_a_time_through(kind: Any) -> None:
    with pytest.raises(ValidationFailed) as refused:
        await read_json(kind, f'"{LATE}"')
    assert refused.value.extensions["errors"][0]["pointer"] == ""


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [str, Any, datetime | str])
async def test_text_that_is_no_time_passes_whatever_it_looks_like(kind: Any) -> None:
    assert await read_json(kind, f'"provider {LATE}"') == f"provider {LATE}"
