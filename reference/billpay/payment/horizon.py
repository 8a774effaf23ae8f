"""A client of Horizon's HTTP API: the six calls that paying needs, each with a deadline and a bound on its answer.

https://developers.stellar.org/docs/data/apis/horizon/api-reference. Why not the SDK's own client: docs/decisions, 0016.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Final, TypeVar
from urllib.parse import quote

import aiohttp
from opentelemetry.trace import SpanKind
from pydantic import BaseModel, Field, ValidationError
from yarl import URL

from microkit import context
from microkit.errors import ConfigurationError, MicrokitError, Unavailable
from microkit.telemetry import Telemetry
from microkit.telemetry.propagation import inject
from reference.billpay.contracts.money import to_stroops
from reference.billpay.payment.domain import AccountState, Included, LedgerHead, Rejected

ANSWER_LIMIT: Final = 1 << 20
"""Bytes of an answer that are read at most."""

Model = TypeVar("Model", bound=BaseModel)


class OutcomeUnknown(MicrokitError):
    """A submission may or may not have reached the network. The identical envelope is to be submitted again."""


class _Balance(BaseModel):
    asset_type: str
    balance: Decimal


class _Account(BaseModel):
    account_id: str
    sequence: int
    subentry_count: int
    balances: list[_Balance]


class _Ledger(BaseModel):
    sequence: int
    closed_at: datetime
    base_fee_in_stroops: int
    base_reserve_in_stroops: int


class _Records(BaseModel):
    records: Annotated[list[_Ledger], Field(min_length=1)]


class _Ledgers(BaseModel):
    embedded: Annotated[_Records, Field(alias="_embedded")]


class _Transaction(BaseModel):
    hash: str
    ledger: int
    successful: bool


class _Codes(BaseModel):
    transaction: str
    operations: tuple[str, ...] = ()


class _Extras(BaseModel):
    result_codes: _Codes


class _Failure(BaseModel):
    extras: _Extras


class _Link(BaseModel):
    href: str


class _Links(BaseModel):
    friendbot: _Link | None = None


class _Root(BaseModel):
    network_passphrase: str
    links: Annotated[_Links, Field(alias="_links")]


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    latest_ledger: str


class Horizon:
    """Talks to the Horizon at the URL that ``where`` finds, for the network called ``passphrase``.

    Each call takes at most ``timeout`` seconds, ``submit`` at most ``submit_timeout``, and neither longer than the
    deadline of the work under way.
    """

    def __init__(
        self,
        where: Callable[[], Awaitable[str]],
        session: aiohttp.ClientSession,
        telemetry: Telemetry,
        *,
        passphrase: str,
        timeout: float,
        submit_timeout: float,
    ) -> None:
        self._where = where
        self._session = session
        self._telemetry = telemetry
        self._passphrase = passphrase
        self._timeout = timeout
        self._submit_timeout = submit_timeout
        self._root: _Root | None = None
        self._durations = telemetry.metrics.http_client

    async def account(self, address: str) -> AccountState | None:
        """An account as of the last closed ledger; ``None`` where the network has none.

        Raises:
            Unavailable: Horizon does not answer, or not sensibly.
        """
        answer = await self._get("/accounts/{account_id}", {"account_id": address})
        if answer.status == 404:
            return None
        found = _read(_Account, answer)
        native = sum(to_stroops(one.balance) for one in found.balances if one.asset_type == "native")
        ledger = int(answer.latest_ledger) if answer.latest_ledger.isdecimal() else None
        return AccountState(address, native, found.sequence, found.subentry_count, ledger)

    async def head(self) -> LedgerHead:
        """The last closed ledger.

        Raises:
            Unavailable: as in :meth:`account`.
        """
        found = _read(_Ledgers, await self._get("/ledgers?order=desc&limit=1")).embedded.records[0]
        return LedgerHead(found.sequence, found.closed_at, found.base_fee_in_stroops, found.base_reserve_in_stroops)

    async def transaction(self, name: str) -> Included | None:
        """The transaction of that hash, where a ledger holds it.

        Raises:
            Unavailable: as in :meth:`account`.
        """
        answer = await self._get("/transactions/{hash}", {"hash": name})
        return None if answer.status == 404 else _included(_read(_Transaction, answer))

    async def submit(self, envelope: str) -> Included | Rejected:
        """Submits an envelope and waits for its ledger.

        Raises:
            OutcomeUnknown: nobody knows whether the network has it. Submit the identical envelope again.
        """
        try:
            answer = await self._ask("POST", "/transactions", data={"tx": envelope}, seconds=self._submit_timeout)
            if answer.status == 400:
                codes = _read(_Failure, answer).extras.result_codes
                return Rejected(codes.transaction, codes.operations)
            return _included(_read(_Transaction, answer))
        except Unavailable as error:
            raise OutcomeUnknown(f"the submission's outcome is unknown: {error}") from error

    async def fund(self, address: str) -> bool:
        """Asks the network's friendbot for play money; whether there is a friendbot. One that has given before, and
        refuses now, is fine.

        Raises:
            Unavailable: as in :meth:`account`.
        """
        link = (await self.root()).links.friendbot
        if link is None:
            return False
        url = URL(link.href.partition("{")[0]).with_query(addr=address)
        answer = await self._ask("GET", "/friendbot", url=url, seconds=self._submit_timeout)
        if answer.status not in {200, 400}:
            raise Unavailable(f"Friendbot answered {answer.status}")
        return True

    async def root(self) -> _Root:
        """Horizon's root, asked once, because it names the network.

        Raises:
            ConfigurationError: it is another network's Horizon; a signature meant for one is none on the other.
            Unavailable: as in :meth:`account`.
        """
        if self._root is None:
            found = _read(_Root, await self._get("/"))
            if found.network_passphrase != self._passphrase:
                raise ConfigurationError(
                    f"PAYMENT_NETWORK_PASSPHRASE is {self._passphrase!r}, but the Horizon at PAYMENT_HORIZON_URL "
                    f"serves {found.network_passphrase!r}; an example: Test SDF Network ; September 2015"
                )
            self._root = found
        return self._root

    async def _get(self, route: str, values: Mapping[str, str] | None = None) -> _Answer:
        path = route.format(**{name: quote(value, safe="") for name, value in (values or {}).items()})
        return await self._ask("GET", route.partition("?")[0], path=path, seconds=self._timeout)

    async def _ask(
        self,
        method: str,
        route: str,
        *,
        seconds: float,
        path: str = "",
        url: URL | None = None,
        data: Mapping[str, str] | None = None,
    ) -> _Answer:
        left = context.remaining()
        allowed = seconds if left is None else min(seconds, left)
        attributes = {"http.request.method": method, "url.template": route, "peer.service": "horizon"}
        started, status, failure = time.perf_counter(), "", ""
        with self._telemetry.span(f"{method} {route}", kind=SpanKind.CLIENT, attributes=attributes) as span:
            try:
                target = url or URL(await self._where() + (path or route), encoded=True)
                async with asyncio.timeout(allowed):
                    answer = await self._exchange(method, target, data)
                status = str(answer.status)
                failure = status if answer.status >= 400 else ""
                span.set_attribute("http.response.status_code", answer.status)
            except TimeoutError:
                failure = "timeout"
                raise Unavailable(f"Horizon did not answer {method} {route} within {allowed:.3g} s") from None
            except (aiohttp.ClientError, OSError) as error:
                failure = type(error).__name__
                raise Unavailable(f"Horizon cannot be reached: {type(error).__name__}") from error
            except BaseException as error:
                failure = type(error).__name__
                raise
            finally:
                took = time.perf_counter() - started
                self._durations("horizon", method, route, status, failure).observe(took)
        return answer

    async def _exchange(self, method: str, url: URL, data: Mapping[str, str] | None) -> _Answer:
        headers = {**inject(), "Accept": "application/hal+json, application/problem+json"}
        async with self._session.request(method, url, data=data, headers=headers, allow_redirects=False) as response:
            body = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                body += chunk
                if len(body) > ANSWER_LIMIT:
                    raise Unavailable(f"Horizon's answer is longer than {ANSWER_LIMIT} bytes")
            return _Answer(response.status, bytes(body), response.headers.get("Latest-Ledger", ""))


def _read(model: type[Model], answer: _Answer) -> Model:
    """The answer as ``model``. Anything else, a proxy's page of HTML or a 504, is no answer."""
    expected = 400 if model is _Failure else 200
    if answer.status != expected:
        raise Unavailable(f"Horizon answered {answer.status}: {_detail(answer.body)}")
    try:
        return model.model_validate_json(answer.body)
    except ValidationError as error:
        raise Unavailable(f"Horizon's answer makes no sense: {error.error_count()} mistakes") from error


class _Problem(BaseModel):
    title: str = ""
    detail: str = ""


def _detail(body: bytes) -> str:
    try:
        return _Problem.model_validate_json(body).title
    except ValidationError:
        return "no problem document"


def _included(found: _Transaction) -> Included:
    return Included(found.hash, found.ledger, found.successful)


def fixed(url: str) -> Callable[[], Awaitable[str]]:
    """A ``where`` for a Horizon whose URL is known."""

    async def where() -> str:
        return url.rstrip("/")

    return where
