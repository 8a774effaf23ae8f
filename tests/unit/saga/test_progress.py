"""Where a saga goes after an attempt; and that, whatever happens, it goes to an end."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from pydantic import BaseModel

from microkit.db import Transaction
from microkit.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    NotFound,
    RemoteProblem,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from microkit.saga import NO_EFFECT, Failure, Retry, Saga, StepNotYet, StepRefused, compensatable, pivot, retriable
from microkit.saga.progress import DONE, Attempt, Ended, Move, Outcome, after, in_patience, outcome_of
from microkit.saga.step import Action, Step, StepKind
from microkit.saga.tables import Direction, Status

TWICE = Retry(attempts=2)


class Nothing(BaseModel): ...


async def away(state: Nothing) -> None: ...
async def here(tx: Transaction) -> None: ...


SAGA = Saga(
    "transfer",
    Nothing,
    [
        compensatable(here, undo=here, name="note", retry=TWICE, undo_retry=TWICE),
        compensatable(away, undo=NO_EFFECT, name="look", timeout=1, retry=TWICE),
        compensatable(away, undo=away, name="reserve", timeout=1, retry=TWICE, undo_retry=TWICE),
        pivot(away, name="book", timeout=1, retry=TWICE),
        retriable(away, name="tell", timeout=1, retry=TWICE),
    ],
)
REFUSED = Outcome(Ended.REFUSED, "no money", "urn:problem:broke")
FAILED = Outcome(Ended.FAILED, "OSError: gone")
BROKE = Failure("book", "no money", "urn:problem:broke")


def move(step: str, number: int, outcome: Outcome, *, saga: Saga[Nothing] = SAGA) -> Move:
    found = saga.steps[saga.positions[step]]
    return after(saga, Attempt(found, Direction.ACTION, number, found.action_local), outcome)


def undo(step: str, number: int, outcome: Outcome) -> Move:
    found = SAGA.steps[SAGA.positions[step]]
    return after(SAGA, Attempt(found, Direction.UNDO, number, found.undo_local, BROKE), outcome)


def test_done_leads_to_the_next_step_at_once() -> None:
    assert move("note", 1, DONE) == Move(Status.RUNNING, Direction.ACTION, "look", 0)


def test_the_last_step_completes_the_saga() -> None:
    assert move("tell", 2, DONE) == Move(Status.COMPLETED, Direction.ACTION, None, None)


def test_a_failure_is_waited_out_and_tried_again() -> None:
    moved = move("reserve", 1, FAILED)

    assert (moved.status, moved.step, moved.error) == (Status.RUNNING, "reserve", "OSError: gone")
    assert moved.wait is not None
    assert 0 < moved.wait <= 0.2


@pytest.mark.parametrize("step", ["note", "reserve", "book", "tell"])
def test_a_step_whose_turn_has_not_come_is_put_off_whatever_its_kind_and_attempts(step: str) -> None:
    outcome = outcome_of(StepNotYet("others first", after=2.0))
    for moved, status in [(move(step, 2, outcome), Status.RUNNING), (undo("note", 2, outcome), Status.COMPENSATING)]:
        assert (moved.status, moved.error, moved.put_off) == (status, "others first", True)
        assert moved.wait is not None
        assert 2.0 <= moved.wait <= 3.0


def test_beyond_its_patience_not_yet_is_a_failure() -> None:
    book = SAGA.steps[SAGA.positions["book"]]
    outcome = outcome_of(StepNotYet("others first", after=2.0))
    within = Attempt(book, Direction.ACTION, 1, False, waited=book.patience)
    beyond = Attempt(book, Direction.ACTION, 1, False, waited=book.patience + 1)

    assert in_patience(within, outcome) is outcome
    assert in_patience(beyond, outcome) == Outcome(Ended.FAILED, "still not yet after 86401 s: others first")
    assert in_patience(beyond, REFUSED) is REFUSED


def test_a_refused_pivot_compensates_what_was_done_in_reverse() -> None:
    assert move("book", 1, REFUSED) == Move(Status.COMPENSATING, Direction.UNDO, "reserve", 0, BROKE)
    assert undo("reserve", 1, DONE) == Move(Status.COMPENSATING, Direction.UNDO, "note", 0, BROKE)
    assert undo("note", 1, DONE) == Move(Status.COMPENSATED, Direction.UNDO, None, None, BROKE)


def test_a_first_attempt_that_refuses_has_nothing_to_undo() -> None:
    assert move("reserve", 1, REFUSED).step == "note"


def test_a_refusal_after_an_attempt_with_unknown_outcome_undoes_that_too() -> None:
    assert move("reserve", 2, REFUSED).step == "reserve"


def test_a_refused_local_step_was_rolled_back_in_every_attempt() -> None:
    assert move("note", 2, REFUSED).status is Status.COMPENSATED


def test_a_step_that_keeps_failing_is_compensated_with_its_own_unknown_effect() -> None:
    moved = move("reserve", 2, FAILED)

    assert (moved.status, moved.step) == (Status.COMPENSATING, "reserve")
    assert moved.failure == Failure("reserve", "gave up after 2 attempts: OSError: gone")


def test_a_pivot_elsewhere_that_keeps_failing_is_stuck_since_nobody_knows_which_way_is_right() -> None:
    assert move("book", 2, FAILED) == Move(Status.STUCK, Direction.ACTION, "book", None, error="OSError: gone")


def test_a_local_pivot_that_keeps_failing_is_known_not_to_have_happened() -> None:
    local = Saga("local", Nothing, [compensatable(here, undo=here, name="note"), pivot(here, retry=TWICE)])

    assert move("here", 2, FAILED, saga=local).status is Status.COMPENSATING


def test_after_the_pivot_a_refusal_is_retried_like_any_failure_and_parked_in_the_end() -> None:
    assert move("tell", 1, REFUSED).step == "tell"
    assert move("tell", 1, REFUSED).status is Status.RUNNING
    assert move("tell", 2, REFUSED).status is Status.STUCK


def test_a_compensation_that_keeps_failing_is_stuck_on_its_way_back() -> None:
    assert undo("reserve", 1, REFUSED).status is Status.COMPENSATING
    assert undo("reserve", 2, FAILED) == Move(Status.STUCK, Direction.UNDO, "reserve", None, BROKE, "OSError: gone")


@pytest.mark.parametrize(
    ("error", "ended"),
    [
        (StepRefused("no money"), Ended.REFUSED),
        (NotFound("no bill"), Ended.REFUSED),
        (BadRequest(), Ended.REFUSED),
        (Conflict(), Ended.REFUSED),
        (Conflict(headers={"Retry-After": "1"}), Ended.FAILED),
        (Unauthorized(), Ended.FAILED),
        (Forbidden(), Ended.FAILED),
        (TooManyRequests(), Ended.FAILED),
        (Unavailable(), Ended.FAILED),
        (DeadlineExceeded(), Ended.FAILED),
        (RemoteProblem("billing", "read", 404, {}), Ended.FAILED),
        (TimeoutError(), Ended.TIMED_OUT),
        (OSError("gone"), Ended.FAILED),
    ],
)
def test_only_a_declared_answer_that_time_does_not_change_is_a_refusal(error: Exception, ended: Ended) -> None:
    assert outcome_of(error).ended is ended


def test_the_reason_is_the_problems_detail_and_its_type() -> None:
    assert outcome_of(NotFound("There is no such bill")) == Outcome(
        Ended.REFUSED, "There is no such bill", "urn:problem:not-found"
    )
    assert outcome_of(StepRefused("No money", type="broke")) == Outcome(Ended.REFUSED, "No money", "broke")


def test_a_reason_can_be_stored_whatever_an_error_says() -> None:
    reason = outcome_of(ValueError("a\x00b" * 10_000)).reason

    assert "\x00" not in reason
    assert len(reason) == 1000


def random_saga(choose: random.Random) -> Saga[Nothing]:
    def step(make: Callable[..., Step], name: str) -> Step:
        retry = Retry(attempts=choose.randint(2 if make is retriable else 1, 3))
        actions: list[Action] = [here, away]
        action = choose.choice(actions)
        if make is compensatable:
            undoing = choose.choice([*actions, None])
            return compensatable(action, undo=undoing or NO_EFFECT, timeout=1, retry=retry, undo_retry=retry, name=name)
        return make(action, timeout=1, retry=retry, name=name)

    kinds: list[Callable[..., Step]] = (
        [compensatable] * choose.randint(0, 4) + [pivot] * choose.randint(0, 1) + [retriable] * choose.randint(0, 3)
    )
    return Saga("any", Nothing, [step(kind, f"s{n}") for n, kind in enumerate(kinds or [retriable])])


@pytest.mark.parametrize("seed", range(300))
def test_any_saga_ends_and_leaves_all_or_nothing_whatever_its_steps_do(seed: int) -> None:
    """Walks a random saga through random outcomes, with steps elsewhere that take effect though they seem to fail."""
    choose = random.Random(seed)
    saga = random_saga(choose)
    effects: set[str] = set()
    undone: list[str] = []
    now, number = Move(Status.RUNNING, Direction.ACTION, saga.steps[0].name, 0), 1
    for _ in range(200):
        if now.step is None or now.status is Status.STUCK:
            break
        step = saga.steps[saga.positions[now.step]]
        local = step.action_local if now.direction is Direction.ACTION else step.undo_local
        outcome = choose.choice([DONE, DONE, DONE, REFUSED, FAILED])
        if now.direction is Direction.ACTION:
            seems = outcome.ended is Ended.FAILED and not local and choose.random() < 0.5
            if step.name in effects and outcome.ended is Ended.REFUSED:
                outcome = DONE  # an idempotent step does not refuse what it has done
            if outcome.ended is Ended.DONE or seems:
                effects.add(step.name)
        elif outcome.ended is Ended.DONE:
            effects.discard(step.name)
            undone.append(step.name)
        attempt = Attempt(step, now.direction, number, local, now.failure)
        moved = after(saga, attempt, outcome)
        number = 1 if moved.goes_on else number + 1
        now = moved
    else:
        pytest.fail("it does not end")

    names = [step.name for step in saga.steps]
    assert undone == sorted(undone, key=names.index, reverse=True)
    assert len(undone) == len(set(undone))
    if now.status is Status.COMPLETED:
        assert effects == set(names)
    elif now.status is Status.COMPENSATED:
        assert effects <= {step.name for step in saga.steps if step.kind is StepKind.COMPENSATABLE and not step.undo}
        assert now.failure is not None
    else:
        assert now.status is Status.STUCK
