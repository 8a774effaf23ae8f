"""The ledger over HTTP, driven by stellar-sdk's own Horizon client, as any wallet would drive it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from hashlib import sha256
from typing import Any, ParamSpec, TypeVar

import aiohttp
import pytest
from stellar_sdk import Asset, Keypair, Server, TransactionBuilder, TransactionEnvelope
from stellar_sdk.exceptions import BadRequestError, NotFoundError
from stellar_sdk.xdr import LedgerHeader

from microkit.instance import Instance
from reference.billpay.contracts.ledger import DEMO_PROVIDERS, SANDBOX_PASSPHRASE
from reference.billpay.ledger.service import service

pytestmark = pytest.mark.anyio

P = ParamSpec("P")
R = TypeVar("R")
PROVIDER = DEMO_PROVIDERS["Lagos Water"]
QUICK: dict[str, object] = {"close_interval": 0.02, "idle_interval": 0.1, "migrate_on_start": True, "port": 0}


@pytest.fixture
async def ledger(anyio_backend: str, database_url: str) -> AsyncIterator[Instance]:
    async with service.instance({**QUICK, "database_url": database_url}) as instance:
        yield instance


@pytest.fixture
def horizon(ledger: Instance) -> Iterator[Server]:
    with Server(ledger.url) as server:  # else its connections would keep the ledger from ending
        yield server


async def ask(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The SDK's client blocks, so it works in a thread."""
    return await asyncio.to_thread(functools.partial(call, *args, **kwargs))


async def fund(ledger: Instance, address: str) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"{ledger.url}/friendbot?addr={address}") as answer:
        return answer.status, await answer.json(content_type=None)


async def payment(horizon: Server, key: Keypair, amount: str = "12.5") -> TransactionEnvelope:
    account = await ask(horizon.load_account, key.public_key)
    fee = await ask(horizon.fetch_base_fee)
    builder = TransactionBuilder(account, SANDBOX_PASSPHRASE, base_fee=fee)
    builder.append_payment_op(PROVIDER, Asset.native(), amount).add_text_memo("INV-1").set_timeout(60)
    envelope = builder.build()
    envelope.sign(key)
    return envelope


def native(account: dict[str, Any]) -> str:
    return str(next(one["balance"] for one in account["balances"] if one["asset_type"] == "native"))


async def test_a_wallet_pays_with_the_sdk_as_on_any_network(ledger: Instance, horizon: Server) -> None:
    key = Keypair.random()
    status, _ = await fund(ledger, key.public_key)
    assert status == 200
    before = await ask(horizon.accounts().account_id(PROVIDER).call)
    envelope = await payment(horizon, key)
    done = await ask(horizon.submit_transaction, envelope)
    assert done["successful"] is True
    assert done["hash"] == envelope.hash_hex()
    assert (done["memo_type"], done["memo"], done["fee_charged"]) == ("text", "INV-1", "100")
    again = await ask(horizon.submit_transaction, envelope)
    assert again == done == await ask(horizon.transactions().transaction(envelope.hash_hex()).call)
    mine = await ask(horizon.accounts().account_id(key.public_key).call)
    after = await ask(horizon.accounts().account_id(PROVIDER).call)
    assert native(mine) == "9987.4999900"
    assert float(native(after)) - float(native(before)) == 12.5
    assert mine["sequence_ledger"] == done["ledger"]


async def test_a_failure_names_its_result_codes(ledger: Instance, horizon: Server) -> None:
    key = Keypair.random()
    await fund(ledger, key.public_key)
    with pytest.raises(BadRequestError) as failure:
        await ask(horizon.submit_transaction, await payment(horizon, key, "10000"))
    assert failure.value.type == "https://stellar.org/horizon-errors/transaction_failed"
    assert failure.value.extras is not None
    assert failure.value.extras["result_codes"] == {"transaction": "tx_failed", "operations": ["op_underfunded"]}
    assert failure.value.extras["result_xdr"] == "AAAAAAAAAGT/////AAAAAQAAAAAAAAAB/////gAAAAA="
    stale = await payment(horizon, key)
    await ask(horizon.submit_transaction, await payment(horizon, key, "2"))
    with pytest.raises(BadRequestError) as failure:
        await ask(horizon.submit_transaction, stale)
    assert failure.value.extras is not None
    assert failure.value.extras["result_codes"] == {"transaction": "tx_bad_seq"}


async def test_what_is_not_there_is_a_404(horizon: Server) -> None:
    with pytest.raises(NotFoundError) as missing:
        await ask(horizon.load_account, Keypair.random().public_key)
    assert missing.value.type == "https://stellar.org/horizon-errors/not_found"
    with pytest.raises(NotFoundError):
        await ask(horizon.transactions().transaction("ab" * 32).call)
    with pytest.raises(NotFoundError):
        await ask(horizon.ledgers().ledger(2_000_000_000).call)


async def test_ledgers_are_paged_and_their_headers_hash_to_their_names(ledger: Instance, horizon: Server) -> None:
    await fund(ledger, Keypair.random().public_key)
    newest = await ask(horizon.ledgers().order(desc=True).limit(1).call)
    (head,) = newest["_embedded"]["records"]
    assert sha256(LedgerHeader.from_xdr(head["header_xdr"]).to_xdr_bytes()).hexdigest() == head["hash"]
    assert head["total_coins"] == "100000000000.0000000"
    page = await ask(horizon.ledgers().order(desc=False).limit(2).call)
    first, second = page["_embedded"]["records"]
    assert (first["sequence"], second["sequence"], second["prev_hash"]) == (1, 2, first["hash"])
    cursor = second["paging_token"]
    after = await ask(horizon.ledgers().order(desc=True).cursor(cursor).limit(5).call)
    assert [record["sequence"] for record in after["_embedded"]["records"]] == [1]
    assert await ask(horizon.ledgers().ledger(2).call) == second


async def test_fee_stats_and_the_root_are_as_wallets_read_them(ledger: Instance, horizon: Server) -> None:
    key = Keypair.random()
    await fund(ledger, key.public_key)
    await ask(horizon.submit_transaction, await payment(horizon, key))
    stats = await ask(horizon.fee_stats().call)
    assert stats["last_ledger_base_fee"] == stats["fee_charged"]["mode"] == stats["max_fee"]["p99"] == "100"
    root = await ask(horizon.root().call)
    assert root["network_passphrase"] == SANDBOX_PASSPHRASE
    assert root["_links"]["friendbot"]["href"] == f"{ledger.url}/friendbot{{?addr}}"


async def test_friendbot_gives_once(ledger: Instance) -> None:
    address = Keypair.random().public_key
    status, given = await fund(ledger, address)
    assert (status, given["successful"]) == (200, True)
    status, refused = await fund(ledger, address)
    assert (status, refused["detail"]) == (400, "account already funded to starting balance")
    status, refused = await fund(ledger, "nobody")
    assert (status, refused["extras"]["invalid_field"]) == (400, "addr")


@pytest.mark.parametrize(
    ("body", "media_type", "status", "kind"),
    [
        (b"tx=AAAA", "application/x-www-form-urlencoded", 400, "transaction_malformed"),
        (b"tx=%FF%FE", "application/x-www-form-urlencoded", 400, "transaction_malformed"),
        (b"\xff\xfe", "application/x-www-form-urlencoded", 400, "bad_request"),
        (b"", "application/x-www-form-urlencoded", 400, "bad_request"),
        (b"&" * 1000, "application/x-www-form-urlencoded", 400, "bad_request"),
        (b'{"tx": "AAAA"}', "application/json", 415, "unsupported_media_type"),
    ],
)
async def test_what_is_no_submission_gets_horizons_problem(
    ledger: Instance, body: bytes, media_type: str, status: int, kind: str
) -> None:
    headers = {"Content-Type": media_type}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{ledger.url}/transactions", data=body, headers=headers) as answer,
    ):
        assert answer.status == status
        assert answer.content_type == "application/problem+json"
        assert (await answer.json(content_type=None))["type"].endswith(kind)


async def test_an_impatient_wallet_gets_a_504_that_asks_for_the_same_envelope(database_url: str) -> None:
    settings = {**QUICK, "database_url": database_url}
    async with service.instance({**settings, "submit_timeout": 5.0}) as quick:
        key = Keypair.random()
        await fund(quick, key.public_key)
        with Server(quick.url) as horizon:
            envelope = await payment(horizon, key)
    slow = {"close_interval": 0.5, "submit_timeout": 0.05}
    # Not with the SDK, which would ask three times by itself.
    async with (
        service.instance({**settings, **slow}) as ledger,
        aiohttp.ClientSession() as session,
        session.post(f"{ledger.url}/transactions", data={"tx": envelope.to_xdr()}) as late,
    ):
        assert late.status == 504
        assert (await late.json(content_type=None))["type"] == "https://stellar.org/horizon-errors/timeout"
    async with service.instance({**settings, "submit_timeout": 5.0}) as restarted:
        with Server(restarted.url) as horizon:
            done = await ask(horizon.submit_transaction, envelope, skip_memo_required_check=True)
        assert done["successful"] is True
