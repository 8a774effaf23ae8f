"""What a system's demo is written with: calls that are shown one by one, and checks that must hold."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol, Self

import aiohttp
import orjson

from microkit.errors import MicrokitError

Document = dict[str, Any]

_POLL: Final = 0.1


class StoryBroken(MicrokitError):
    """The story cannot go on: a call was not answered as it should be, or something never happened."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call and its answer. ``milliseconds`` is what it took; ``asked`` counts the repetitions of a wait."""

    title: str
    method: str
    url: str
    status: int
    milliseconds: float
    asked: int = 1
    body: Any = field(default=None, repr=False)

    @property
    def as_expected(self) -> bool:
        return self.status < 400


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must be so."""

    sentence: str
    ok: bool
    detail: str = ""


class Narrator(Protocol):
    """Tells the story to whoever watches. Each method is called once for each thing that happens."""

    def chapter(self, title: str) -> None: ...
    def call(self, call: Call) -> None: ...
    def events(self, events: list[Document]) -> None: ...
    def sagas(self, sagas: list[Document]) -> None: ...
    def trace(self, trace: Document) -> None: ...
    def check(self, check: Check) -> None: ...


class Silent:
    """Tells nothing: the result speaks."""

    def chapter(self, title: str) -> None: ...
    def call(self, call: Call) -> None: ...
    def events(self, events: list[Document]) -> None: ...
    def sagas(self, sagas: list[Document]) -> None: ...
    def trace(self, trace: Document) -> None: ...
    def check(self, check: Check) -> None: ...


class Story:
    """Drives a running system from outside, as a client of it.

    ``urls`` are the services' base URLs by name, ``console`` the console's. Everything that happens is told to
    ``narrator`` and kept in ``result``, which is what ``--json`` prints: the story adds what it finds worth telling.
    """

    def __init__(self, urls: Mapping[str, str], console: str, narrator: Narrator, *, gateway: str = "gateway") -> None:
        self.urls = dict(urls)
        self.result: Document = {}
        self._console = console
        self._narrator = narrator
        self._gateway = gateway
        self._calls: list[Call] = []
        self._checks: list[Check] = []

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    @property
    def ok(self) -> bool:
        """Whether something was checked and everything checked was so."""
        return bool(self._checks) and all(check.ok for check in self._checks)

    def document(self) -> Document:
        """The whole story as JSON."""
        return {
            "ok": self.ok,
            **self.result,
            "checks": [asdict(check) for check in self._checks],
            "calls": [_told(call) for call in self._calls],
        }

    def chapter(self, title: str) -> None:
        self._narrator.chapter(title)

    def check(self, sentence: str, ok: bool, detail: object = "") -> None:
        """Says whether something is as it should be; ``detail`` tells what was found."""
        check = Check(sentence, ok, str(detail))
        self._checks.append(check)
        self._narrator.check(check)

    async def call(
        self,
        title: str,
        method: str,
        path: str,
        *,
        body: Any = None,
        token: str | None = None,
        trace_id: str | None = None,
        expect: int = 200,
        service: str | None = None,
    ) -> Any:
        """One call, through the gateway unless a ``service`` is named; its JSON answer.

        Raises:
            StoryBroken: it was answered with another status than ``expect``, or not at all.
        """
        call = await self._ask(title, method, path, body=body, token=token, trace_id=trace_id, service=service)
        self._tell(call)
        self._demand(call, expect)
        return call.body

    async def until(
        self,
        title: str,
        path: str,
        done: Callable[[Any], bool],
        *,
        token: str | None = None,
        within: float = 30.0,
        service: str | None = None,
    ) -> Any:
        """Asks again and again until the answer is ``done``; told as one call.

        Raises:
            StoryBroken: it was not within so many seconds.
        """
        began = time.monotonic()
        asked = 0
        while True:
            asked += 1
            call = await self._ask(title, "GET", path, token=token, service=service)
            self._demand(call, 200)
            took = time.monotonic() - began
            if done(call.body) or took > within:
                break
            await asyncio.sleep(_POLL)
        self._tell(Call(title, "GET", call.url, call.status, round(took * 1000, 1), asked, call.body))
        if not done(call.body):
            raise StoryBroken(f"{title}: not within {within:g} s; the last answer was {_short(call.body)}")
        return call.body

    async def show_events(self, trace_id: str) -> list[Document]:
        """The events of a trace."""
        found: list[Document] = (await self._from_console(f"/events?trace={trace_id}"))["events"]
        self._narrator.events(found)
        return found

    async def show_sagas(self, trace_id: str) -> list[Document]:
        """The sagas that a trace started, with their steps."""
        found: list[Document] = (await self._from_console(f"/sagas?trace={trace_id}"))["sagas"]
        self._narrator.sagas(found)
        return found

    async def show_trace(
        self, trace_id: str, *, complete: Callable[[Document], bool], within: float = 10.0
    ) -> Document:
        """The spans of a trace, once it is ``complete`` or the time is over: some end after the last answer."""
        began = time.monotonic()
        while True:
            found = await self._from_console(f"/traces/{trace_id}")
            if complete(found) or time.monotonic() - began > within:
                self._narrator.trace(found)
                return found
            await asyncio.sleep(_POLL)

    def _tell(self, call: Call) -> None:
        self._calls.append(call)
        self._narrator.call(call)

    def _demand(self, call: Call, expect: int) -> None:
        if call.status != expect:
            raise StoryBroken(
                f"{call.title}: {call.method} {call.url} answered {call.status}, not {expect}: {_short(call.body)}"
            )

    async def _from_console(self, path: str) -> Document:
        call = await self._request("", "GET", self._console + path, None, {})
        if call.status == 404:
            return {"spans": [], "services": []}
        if not isinstance(call.body, dict):
            raise StoryBroken(f"The console answered {call.status}: {_short(call.body)}")
        return call.body

    async def _ask(
        self,
        title: str,
        method: str,
        path: str,
        *,
        body: Any = None,
        token: str | None = None,
        trace_id: str | None = None,
        service: str | None = None,
    ) -> Call:
        headers: dict[str, str] = {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if trace_id:
            headers["traceparent"] = f"00-{trace_id}-{secrets.token_hex(8)}-01"
        if method == "POST":
            headers["Idempotency-Key"] = secrets.token_hex(16)
        return await self._request(title, method, self.urls[service or self._gateway] + path, body, headers)

    async def _request(self, title: str, method: str, url: str, body: Any, headers: dict[str, str]) -> Call:
        began = time.monotonic()
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with self._session.request(
                method, url, data=None if body is None else orjson.dumps(body), headers=headers, allow_redirects=False
            ) as response:
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StoryBroken(f"{title or 'The console'}: {method} {url} was not answered: {error}") from None
        took = round((time.monotonic() - began) * 1000, 1)
        return Call(title, method, url, response.status, took, 1, _parsed(raw))


def new_trace_id() -> str:
    """An id for a trace that the story starts itself, so that it can be found again."""
    return secrets.token_hex(16)


def _told(call: Call) -> Document:
    """The call without its answer's body, which may hold tokens."""
    told = asdict(call)
    del told["body"]
    return told


def _parsed(raw: bytes) -> Any:
    try:
        return orjson.loads(raw) if raw else None
    except orjson.JSONDecodeError:
        return raw[:200].decode("utf-8", "replace")


def _short(body: Any) -> str:
    if isinstance(body, dict) and "title" in body:
        return f"{body['title']}: {body['detail']}" if body.get("detail") else str(body["title"])
    return str(body)[:300]
