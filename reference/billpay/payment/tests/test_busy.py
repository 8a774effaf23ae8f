"""A wallet that others are paying from is no failure."""

from __future__ import annotations

from microkit.saga.progress import Attempt, Ended, after, in_patience, outcome_of
from microkit.saga.tables import Direction
from reference.billpay.payment.cashier import PAUSE, WalletBusy
from reference.billpay.payment.sagas import pay_bill


def test_a_busy_wallet_uses_up_none_of_the_attempts() -> None:
    step = pay_bill.steps[pay_bill.positions["submit_payment"]]
    attempt = Attempt(step, Direction.ACTION, step.retry.attempts, False)
    outcome = in_patience(attempt, outcome_of(WalletBusy("GANN")))
    move = after(pay_bill, attempt, outcome)

    assert outcome.ended is Ended.NOT_YET
    assert (move.status, move.step, move.put_off) == ("running", "submit_payment", True)
    assert move.wait is not None
    assert PAUSE <= move.wait <= 1.5 * PAUSE
