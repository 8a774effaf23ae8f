"""The client of Horizon against servers that behave, and against those that do not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from microkit.context import deadline_within
from microkit.errors import ConfigurationError, DeadlineExceeded, Unavailable
from microkit.telemetry import Telemetry
from reference.billpay.payment.domain import AccountState, Included, LedgerHead, Rejected
from reference.billpay.payment.horizon import ANSWER_LIMIT, Horizon, OutcomeUnknown, fixed

pytestmark = pytest.mark.anyio

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Answer], Awaitable[Horizon]]

PASSPHRASE = "Test SDF Network ; September 2015"
HASH = "ab" * 32


def says(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    async def answer(_: web.Request) -> web.Response:
        text = document if isinstance(document, str) else json.dumps(document)
        return web.Response(text=text, status=status, headers=headers)

    return answer


@pytest.fixture
async def serve(anyio_backend: str, telemetry: Telemetry) -> AsyncIterator[Serve]:
    """Starts a server that answers everything in one way; returns a client of it."""
    runners = []
    async with aiohttp.ClientSession() as session:

        async def start(answer: Answer) -> Horizon:
            app = web.Application()
            app.router.add_route("*", "/{path:.*}", answer)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            runners.append(runner)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            where = fixed(f"http://127.0.0.1:{port}/")
            return Horizon(where, session, telemetry, passphrase=PASSPHRASE, timeout=0.5, submit_timeout=0.5)

        yield start
        for runner in runners:
            await runner.cleanup()


ACCOUNT = {
    "account_id": "GANN",
    "sequence": "6319125253062657",
    "subentry_count": 2,
    "last_modified_ledger": 3,
    "balances": [
        {"balance": "1000000.0000000", "asset_type": "credit_alphanum4", "asset_code": "USD"},
        {"balance": "9999.9999900", "asset_type": "native"},
    ],
}


async def test_an_account_is_read_with_the_ledger_it_is_of(serve: Serve) -> None:
    horizon = await serve(says(ACCOUNT, headers={"Latest-Ledger": "77"}))
    assert await horizon.account("GANN") == AccountState("GANN", 99_999_999_900, 6319125253062657, 2, 77)


async def test_an_account_that_is_not_there_is_none(serve: Serve) -> None:
    horizon = await serve(says({"status": 404}, 404))
    assert await horizon.account("GANN") is None
    assert await horizon.transaction(HASH) is None


async def test_the_last_ledger_is_read(serve: Serve) -> None:
    ledger = {
        "sequence": 1234,
        "closed_at": "2026-01-17T08:00:05Z",
        "base_fee_in_stroops": 100,
        "base_reserve_in_stroops": 5000000,
        "header_xdr": "…",
    }
    horizon = await serve(says({"_links": {}, "_embedded": {"records": [ledger]}}))
    assert await horizon.head() == LedgerHead(1234, datetime(2026, 1, 17, 8, 0, 5, tzinfo=UTC), 100, 5_000_000)


async def test_a_submission_is_a_form_and_its_answer_names_the_ledger(serve: Serve) -> None:
    seen: dict[str, Any] = {}

    async def horizon_like(request: web.Request) -> web.Response:
        seen.update(method=request.method, path=request.path, form=dict(await request.post()))
        return web.json_response({"hash": HASH, "ledger": 9, "successful": True, "envelope_xdr": "…"})

    horizon = await serve(horizon_like)
    assert await horizon.submit("AAAA+/==") == Included(HASH, 9, successful=True)
    assert seen == {"method": "POST", "path": "/transactions", "form": {"tx": "AAAA+/=="}}


async def test_a_refusal_carries_the_networks_codes(serve: Serve) -> None:
    failure = {
        "type": "https://stellar.org/horizon-errors/transaction_failed",
        "status": 400,
        "extras": {"result_codes": {"transaction": "tx_failed", "operations": ["op_underfunded"]}},
    }
    horizon = await serve(says(failure, 400))
    assert await horizon.submit("AAAA") == Rejected("tx_failed", ("op_underfunded",))
    failure["extras"] = {"result_codes": {"transaction": "tx_bad_seq"}}
    assert await (await serve(says(failure, 400))).submit("AAAA") == Rejected("tx_bad_seq")


async def hangs(_: web.Request) -> web.Response:
    await asyncio.sleep(30)
    return web.Response()


async def breaks_off(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


SENSELESS = [
    says({"title": "Timeout", "status": 504}, 504),
    says("<html>Bad Gateway</html>", 502),
    says("<html>Welcome</html>"),
    says("[]"),
    says({}),
    says({"title": "Too many requests"}, 429),
    says("", 302, {"Location": "http://127.0.0.1:1/"}),
    says("x" * (ANSWER_LIMIT + 1)),
    says({"status": 400, "title": "Bad Request"}, 400),
    hangs,
    breaks_off,
]


@pytest.mark.parametrize("answer", SENSELESS)
async def test_a_submission_without_a_clear_answer_has_an_unknown_outcome(serve: Serve, answer: Answer) -> None:
    horizon = await serve(answer)
    with pytest.raises(OutcomeUnknown):
        await horizon.submit("AAAA")


@pytest.mark.parametrize("answer", SENSELESS)
async def test_a_question_without_a_clear_answer_says_that_horizon_is_away(serve: Serve, answer: Answer) -> None:
    horizon = await serve(answer)
    for question in (horizon.account("GANN"), horizon.head(), horizon.transaction(HASH), horizon.root()):
        with pytest.raises(Unavailable):
            await question


async def test_a_horizon_that_nobody_serves_is_away(telemetry: Telemetry) -> None:
    async with aiohttp.ClientSession() as session:
        where = fixed("http://127.0.0.1:1")
        horizon = Horizon(where, session, telemetry, passphrase=PASSPHRASE, timeout=1, submit_timeout=1)
        with pytest.raises(Unavailable):
            await horizon.head()
        with pytest.raises(OutcomeUnknown):
            await horizon.submit("AAAA")


async def test_no_call_waits_longer_than_its_caller(serve: Serve) -> None:
    horizon = await serve(hangs)
    with deadline_within(0.05), pytest.raises(Unavailable, match=r"within 0\.0"):
        await horizon.head()
    with deadline_within(0.0), pytest.raises(DeadlineExceeded):
        await horizon.head()


async def test_another_networks_horizon_is_refused(serve: Serve) -> None:
    horizon = await serve(says({"network_passphrase": "Public Global Stellar Network ; September 2015", "_links": {}}))
    with pytest.raises(ConfigurationError, match="PAYMENT_NETWORK_PASSPHRASE"):
        await horizon.root()


async def test_friendbot_is_asked_where_there_is_one(serve: Serve) -> None:
    asked = []

    async def horizon_like(request: web.Request) -> web.Response:
        if request.path == "/friendbot":
            asked.append(request.query["addr"])
            return web.json_response({"detail": "account already funded"}, status=400)
        links = {"friendbot": {"href": f"http://{request.host}/friendbot{{?addr}}", "templated": True}}
        return web.json_response({"network_passphrase": PASSPHRASE, "_links": links})

    assert await (await serve(horizon_like)).fund("GANN")
    assert asked == ["GANN"]
    without = await serve(says({"network_passphrase": PASSPHRASE, "_links": {}}))
    assert not await without.fund("GANN")


async def test_an_address_cannot_leave_its_place_in_the_path(serve: Serve) -> None:
    paths = []

    async def note(request: web.Request) -> web.Response:
        paths.append(request.raw_path)
        return web.Response(status=404)

    await (await serve(note)).account("../transactions?x=1")
    assert paths == ["/accounts/..%2Ftransactions%3Fx%3D1"]


async def test_each_call_is_a_span_and_carries_the_trace(serve: Serve, telemetry: Telemetry) -> None:
    seen = []

    async def note(request: web.Request) -> web.Response:
        seen.append(request.headers.get("traceparent", ""))
        return web.Response(status=404)

    horizon = await serve(note)
    with telemetry.span("saga step"):
        await horizon.account("GANN")
    assert telemetry.ring is not None
    (call, step) = sorted(telemetry.ring.recent(2), key=lambda span: span.name)
    assert call.name == "GET /accounts/{account_id}"
    assert seen[0].split("-")[1] == call.trace_id == step.trace_id


async def test_calls_are_counted_among_the_http_calls_of_the_service(serve: Serve, telemetry: Telemetry) -> None:
    assert await (await serve(says({}, 404))).account("GANN") is None
    with pytest.raises(Unavailable):
        await (await serve(says("x" * (ANSWER_LIMIT + 1)))).account("GANN")

    counted = telemetry.exposition().decode()
    series = 'http_client_request_duration_seconds_count{{error_type="{}",http_request_method="GET",'
    series += 'http_response_status_code="{}",server_address="horizon",url_template="/accounts/{{account_id}}"}} 1.0'
    assert series.format("404", "404") in counted
    assert series.format("Unavailable", "") in counted
