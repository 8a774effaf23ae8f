"""What can be afforded, what the network's answers mean, and when an envelope is ruled out."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from reference.billpay.payment import domain
from reference.billpay.payment.domain import AccountState, LedgerHead

XLM = 10_000_000
NOW = 1_700_000_000


def account(balance: int = 10 * XLM, sequence: int = 7, ledger: int | None = 50) -> AccountState:
    return AccountState("G…", balance, sequence, 0, ledger)


def head(closed_at: int = NOW, sequence: int = 50) -> LedgerHead:
    return LedgerHead(sequence, datetime.fromtimestamp(closed_at, UTC), 100, 5_000_000)


def test_what_is_above_the_reserve_can_be_paid() -> None:
    assert domain.shortfall(account(), head(), 9 * XLM - 100, 100) is None


def test_who_cannot_pay_is_told_what_is_there_and_what_is_needed() -> None:
    assert domain.shortfall(account(), head(), 9 * XLM - 99, 100) == (
        "Your wallet holds 10 XLM, of which 1 must stay in it. "
        "This payment needs 8.9999901 and up to 0.00001 as the network's fee. Nothing was taken."
    )


def test_each_subentry_raises_the_reserve() -> None:
    with_entries = AccountState("G…", 10 * XLM, 7, 4, 50)
    assert domain.shortfall(with_entries, head(), 8 * XLM, 100) is not None


@pytest.mark.parametrize(
    ("reference", "seen"),
    [
        ("INV-2026-0117", "INV-2026-0117"),
        ("x" * 28, "x" * 28),
        ("x" * 29, "0123456789abcdef0123456789ab"),
        ("é" * 15, "0123456789abcdef0123456789ab"),
        ("", "0123456789abcdef0123456789ab"),
    ],
)
def test_the_provider_sees_the_reference_where_it_fits(reference: str, seen: str) -> None:
    assert domain.memo(reference, UUID("0123456789abcdef0123456789abcdef")) == seen


@pytest.mark.parametrize(
    ("code", "operations", "fee_was_taken", "reason"),
    [
        (
            "tx_failed",
            ["op_success", "op_underfunded"],
            True,
            "Your wallet did not hold enough when the network made the payment. Only the fee was taken.",
        ),
        (
            "tx_insufficient_fee",
            [],
            False,
            "The network is busy and asks for a higher fee than we offer. Try again later. Nothing was taken.",
        ),
        ("tx_bad_auth", [], False, "The network refused the payment (tx_bad_auth). Nothing was taken."),
        ("tx_failed", ["op_no_trust"], True, "The network refused the payment (op_no_trust). Only the fee was taken."),
    ],
)
def test_a_refusal_is_explained_in_a_persons_words(
    code: str, operations: list[str], fee_was_taken: bool, reason: str
) -> None:
    assert domain.reason(code, operations, fee_was_taken=fee_was_taken) == reason


@pytest.mark.parametrize(
    ("what", "state", "closed_at", "expected"),
    [
        ("no ledger has passed its time bound", account(sequence=7), NOW, False),
        ("a ledger has passed it and the sequence number is unused", account(sequence=7), NOW + 1, True),
        ("the account is older than that ledger", account(sequence=7, ledger=49), NOW + 1, False),
        ("a Horizon that does not say how old the account is", account(sequence=7, ledger=None), NOW + 1, True),
        ("the number is used, and the history may lag", account(sequence=8), NOW + 30, False),
        ("the number is used, and the history has caught up", account(sequence=8), NOW + 31, True),
        ("the account is gone", None, NOW + 1, True),
    ],
)
def test_an_envelope_is_ruled_out_by_closed_ledgers_only(
    what: str, state: AccountState | None, closed_at: int, expected: bool
) -> None:
    assert domain.ruled_out(sequence=8, max_time=NOW, account=state, head=head(closed_at), lag=30) is expected, what


@pytest.mark.parametrize(("stroops", "text"), [(0, "0"), (5, "0.0000005"), (10 * XLM, "10"), (123_000_000, "12.3")])
def test_amounts_are_written_as_people_write_them(stroops: int, text: str) -> None:
    assert domain.xlm(stroops) == text
