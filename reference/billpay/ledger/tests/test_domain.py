"""The rules of the ledger, without a database."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from reference.billpay.ledger import domain, genesis
from reference.billpay.ledger.domain import (
    BASE_FEE,
    MINIMUM_BALANCE,
    STROOPS_PER_XLM,
    TOTAL_COINS,
    Account,
    CreateAccount,
    OpCode,
    Operation,
    Payment,
    Submission,
    TxCode,
    Unsupported,
)

NOW = 1_700_000_000
XLM = STROOPS_PER_XLM


def accounts() -> dict[str, Account]:
    return {"ann": Account(10 * XLM, 7), "bob": Account(5 * XLM, 3)}


def signed(*operations: Operation, source: str = "ann", sequence: int = 8, **changes: Any) -> Submission:
    plain = Submission(
        hash=f"{source}-{sequence}",
        source=source,
        sequence=sequence,
        max_fee=BASE_FEE * len(operations),
        operations=operations,
        signed_by=frozenset({source, *(operation.source for operation in operations)}),
    )
    return replace(plain, **changes)


def pays(amount: int = XLM, source: str = "ann", destination: str = "bob") -> Payment:
    return Payment(source, destination, amount)


def test_a_payment_moves_exactly_its_amount_and_burns_its_fee() -> None:
    state = accounts()
    closing = domain.close(state, [signed(pays(3 * XLM))], ledger=5, at=NOW)
    assert state == {"ann": Account(7 * XLM - BASE_FEE, 8), "bob": Account(8 * XLM, 3)}
    assert [outcome for _, outcome in closing.applied] == [domain.Outcome(TxCode.SUCCESS, (OpCode.SUCCESS,), BASE_FEE)]
    assert closing.fees == BASE_FEE


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"supported": False}, TxCode.NOT_SUPPORTED),
        ({"operations": ()}, TxCode.MISSING_OPERATION),
        ({"min_time": NOW + 1}, TxCode.TOO_EARLY),
        ({"max_time": NOW - 1}, TxCode.TOO_LATE),
        ({"max_fee": BASE_FEE - 1}, TxCode.INSUFFICIENT_FEE),
        ({"source": "nobody"}, TxCode.NO_SOURCE_ACCOUNT),
        ({"sequence": 7}, TxCode.BAD_SEQ),
        ({"sequence": 9}, TxCode.BAD_SEQ),
        ({"signed_by": frozenset()}, TxCode.BAD_AUTH),
        ({"stray_signatures": True}, TxCode.BAD_AUTH_EXTRA),
    ],
)
def test_an_invalid_transaction_is_refused_and_costs_nothing(changes: dict[str, Any], code: TxCode) -> None:
    state = accounts()
    closing = domain.close(state, [signed(pays(), **changes)], ledger=5, at=NOW)
    assert [outcome.code for _, outcome in closing.dropped] == [code]
    assert not closing.applied
    assert state == accounts()


@pytest.mark.parametrize("bounds", [{"min_time": NOW}, {"max_time": NOW}, {"max_time": 0}])
def test_a_transaction_at_its_time_bounds_is_valid(bounds: dict[str, Any]) -> None:
    assert domain.refusal(signed(pays(), **bounds), accounts(), NOW) is None


def test_transactions_of_one_account_follow_each_other_in_one_ledger() -> None:
    state = accounts()
    assert domain.refusal(signed(pays(), sequence=9), state, NOW, waiting=1) is None
    closing = domain.close(
        state, [signed(pays()), signed(pays(), sequence=9), signed(pays(), sequence=9)], ledger=5, at=NOW
    )
    assert [done.sequence for done, _ in closing.applied] == [8, 9]
    assert [outcome.code for _, outcome in closing.dropped] == [TxCode.BAD_SEQ]


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (pays(10 * XLM - MINIMUM_BALANCE - BASE_FEE + 1), OpCode.UNDERFUNDED),
        (pays(destination="nobody"), OpCode.NO_DESTINATION),
        (CreateAccount("ann", "bob", 2 * XLM), OpCode.ALREADY_EXISTS),
        (CreateAccount("ann", "new", MINIMUM_BALANCE - 1), OpCode.LOW_RESERVE),
        (CreateAccount("ann", "new", 10 * XLM), OpCode.UNDERFUNDED),
    ],
)
def test_a_failed_operation_costs_the_fee_and_the_sequence_number_and_nothing_else(
    operation: Operation, code: OpCode
) -> None:
    state = accounts()
    closing = domain.close(state, [signed(operation)], ledger=5, at=NOW)
    assert [(outcome.code, outcome.operations) for _, outcome in closing.applied] == [(TxCode.FAILED, (code,))]
    assert state == {"ann": Account(10 * XLM - BASE_FEE, 8), "bob": Account(5 * XLM, 3)}


def test_all_that_is_above_the_reserve_can_be_paid() -> None:
    state = accounts()
    domain.close(state, [signed(pays(10 * XLM - MINIMUM_BALANCE - BASE_FEE))], ledger=5, at=NOW)
    assert state["ann"].balance == MINIMUM_BALANCE


def test_a_balance_beyond_64_bits_is_refused() -> None:
    state = {"ann": Account(10 * XLM, 7), "bob": Account(domain.LARGEST_BALANCE - 1, 3)}
    closing = domain.close(state, [signed(pays(2))], ledger=5, at=NOW)
    assert closing.applied[0][1].operations == (OpCode.LINE_FULL,)


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        (pays(0), OpCode.MALFORMED),
        (CreateAccount("ann", "ann", 2 * XLM), OpCode.MALFORMED),
        (Unsupported("ann"), OpCode.NOT_SUPPORTED),
    ],
)
def test_an_operation_that_can_never_work_is_refused_before_it_costs(operation: Operation, code: OpCode) -> None:
    refused = domain.refusal(signed(operation), accounts(), NOW)
    assert refused == domain.Outcome(TxCode.FAILED, (code,))


def test_an_operation_of_another_account_needs_its_signature_too() -> None:
    foreign = signed(pays(), pays(source="bob", destination="ann"))
    assert domain.refusal(foreign, accounts(), NOW) is None
    unsigned = replace(foreign, signed_by=frozenset({"ann"}))
    assert domain.refusal(unsigned, accounts(), NOW) == domain.Outcome(TxCode.FAILED, (OpCode.SUCCESS, OpCode.BAD_AUTH))


def test_when_one_operation_fails_none_is_applied() -> None:
    state = accounts()
    several = signed(CreateAccount("ann", "new", 2 * XLM), pays(), pays(destination="nobody"), pays())
    closing = domain.close(state, [several], ledger=5, at=NOW)
    assert closing.applied[0][1].operations == (
        OpCode.SUCCESS,
        OpCode.SUCCESS,
        OpCode.NO_DESTINATION,
        OpCode.SUCCESS,
    )
    assert state == {"ann": Account(10 * XLM - 4 * BASE_FEE, 8), "bob": Account(5 * XLM, 3)}


def test_a_fee_must_leave_the_reserve() -> None:
    state = {"ann": Account(MINIMUM_BALANCE + BASE_FEE - 1, 7)}
    refused = domain.refusal(signed(pays()), state, NOW)
    assert refused is not None
    assert refused.code is TxCode.INSUFFICIENT_BALANCE


def test_a_new_account_begins_with_the_sequence_number_of_its_ledger() -> None:
    state = accounts()
    domain.close(state, [signed(CreateAccount("ann", "new", 2 * XLM))], ledger=5, at=NOW)
    assert state["new"] == Account(2 * XLM, 5 << 32)


def test_money_is_conserved_over_thousands_of_random_transactions() -> None:
    choose = random.Random(20_260_117)
    names = [f"account-{number}" for number in range(8)]
    state = {name: Account(choose.randrange(1, 50) * XLM, 0) for name in names[:6]}
    total, fees = sum(account.balance for account in state.values()), 0
    codes = set()
    for ledger in range(1, 400):
        waiting = []
        for _ in range(choose.randrange(6)):
            source, destination = choose.choice(names), choose.choice(names)
            amount = choose.randrange(-5, 30 * XLM)
            operation: Operation = Payment(source, destination, amount)
            if choose.random() < 0.3:
                operation = CreateAccount(source, destination, amount)
            sequence = state[source].sequence + choose.choice([1, 1, 1, 2]) if source in state else 1
            waiting.append(signed(operation, source=source, sequence=sequence))
        closing = domain.close(state, waiting, ledger=ledger, at=NOW + ledger)
        fees += closing.fees
        codes |= {outcome.code for _, outcome in closing.applied + closing.dropped}
        assert sum(account.balance for account in state.values()) + fees == total
        assert all(account.balance >= MINIMUM_BALANCE for account in state.values())
    assert codes >= {TxCode.SUCCESS, TxCode.FAILED, TxCode.BAD_SEQ, TxCode.NO_SOURCE_ACCOUNT}


def test_a_ledger_that_would_lose_money_is_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def embezzle(source: Account, destination: Account | None, amount: int) -> OpCode:
        source.balance -= amount
        return OpCode.SUCCESS

    monkeypatch.setattr(domain, "_pay", embezzle)
    with pytest.raises(ArithmeticError):
        domain.close(accounts(), [signed(pays())], ledger=5, at=NOW)


def test_the_first_ledger_holds_all_there_is() -> None:
    assert sum(genesis.balances().values()) == TOTAL_COINS
