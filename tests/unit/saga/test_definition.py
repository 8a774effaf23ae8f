"""What a definition refuses while the module loads, and what it promises about its state."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

from microkit import Contract, get
from microkit.db import Transaction
from microkit.errors import DefinitionError
from microkit.saga import NO_EFFECT, Retry, Saga, compensatable, pivot, retriable
from microkit.saga.step import Step


class Transfer(BaseModel):
    id: UUID
    amount: Decimal = Decimal("1.50")


class Other(BaseModel):
    name: str = ""


class Bank(Contract, service="bank", allow="member"):
    @get("/balance")
    async def balance(self) -> int: ...


async def reserve(state: Transfer) -> None: ...
async def release(state: Transfer) -> None: ...
async def book(state: Transfer) -> dict[str, Decimal]: ...
async def note(state: Transfer, tx: Transaction) -> Transfer: ...


def define(*steps: Step, name: str = "transfer", version: int = 1) -> Saga[Transfer]:
    return Saga(name, Transfer, steps, version=version)


def test_a_saga_reads_as_its_steps() -> None:
    saga = define(compensatable(reserve, undo=release, timeout=5), pivot(book, timeout=5), retriable(note))

    assert repr(saga) == "<Saga transfer v1: reserve → book → note>"


def test_a_step_with_a_transaction_is_local_and_needs_no_timeout() -> None:
    step = compensatable(note, undo=NO_EFFECT)

    assert (step.action_local, step.timeout) == (True, 30.0)


def test_a_step_without_a_transaction_needs_a_timeout() -> None:
    with pytest.raises(DefinitionError, match=r"'book' acts outside .* no time-out: give it timeout="):
        pivot(book)


def test_an_undo_without_a_transaction_needs_a_timeout_too() -> None:
    with pytest.raises(DefinitionError, match="'note' acts outside"):
        compensatable(note, undo=release)


def test_a_step_does_not_call_another_service_inside_its_transaction() -> None:
    async def both(state: Transfer, tx: Transaction, bank: Bank) -> None: ...

    with pytest.raises(DefinitionError, match=r"takes a Transaction and calls Bank.*two steps"):
        retriable(both)


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ([], "no steps"),
        ([pivot(book, timeout=1), pivot(note)], r"2 pivots \(book, note\).*one point of no return"),
        (
            [retriable(note), pivot(book, timeout=1)],
            "'book' is pivot and follows a retriable step: move it before 'note'",
        ),
        (
            [pivot(book, timeout=1), compensatable(reserve, undo=release, timeout=1)],
            "'reserve' is compensatable and follows a pivot step: make it retriable, or move it before 'book'",
        ),
        (
            [retriable(note), compensatable(reserve, undo=release, timeout=1)],
            "'reserve' is compensatable and follows a retriable step",
        ),
        ([retriable(note), retriable(note)], "two steps of the name 'note'"),
    ],
)
def test_steps_that_cannot_end_are_refused_with_what_to_do(steps: list[Step], complaint: str) -> None:
    with pytest.raises(DefinitionError, match=complaint):
        define(*steps)


def test_one_function_may_be_two_steps_of_different_names() -> None:
    assert list(define(retriable(note), retriable(note, name="note_again")).positions) == ["note", "note_again"]


@pytest.mark.parametrize("name", ["", "Transfer", "transfer_money", "transfer-", "pay bill"])
def test_a_name_is_lower_case_words(name: str) -> None:
    with pytest.raises(DefinitionError, match="lower-case words"):
        define(retriable(note), name=name)


def test_versions_count_from_one() -> None:
    with pytest.raises(DefinitionError, match="versions count from 1"):
        define(retriable(note), version=0)


def test_a_step_returns_the_sagas_state() -> None:
    async def strange(state: Transfer, tx: Transaction) -> Other: ...

    with pytest.raises(DefinitionError, match=r"returns Other; a step returns the saga's state \(Transfer\)"):
        define(retriable(strange))


def test_a_step_takes_the_sagas_state() -> None:
    async def strange(state: Other, tx: Transaction) -> None: ...

    with pytest.raises(DefinitionError, match="takes state: Other; the saga's state is Transfer"):
        define(retriable(strange))


def test_a_step_is_asynchronous() -> None:
    def blocking(state: Transfer) -> None: ...

    with pytest.raises(DefinitionError, match="async def"):
        retriable(blocking, timeout=1)  # type: ignore[arg-type]  # the wrong one is the test


def test_a_type_that_is_not_there_yet_is_named() -> None:
    async def early(state: NotYet) -> None: ...  # type: ignore[name-defined]  # noqa: F821  the wrong one is the test

    with pytest.raises(DefinitionError, match=r"'early': a type that it names is not known yet.*NotYet"):
        retriable(early, timeout=1)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_is_some_seconds(timeout: float) -> None:
    with pytest.raises(DefinitionError, match="seconds above 0"):
        pivot(book, timeout=timeout)


@pytest.mark.parametrize(
    ("attempts", "initial", "maximum"), [(0, 1, 1), (1, -1, 1), (1, 2, 1), (1, 1, float("inf")), (1, float("nan"), 1)]
)
def test_a_retry_policy_makes_sense(attempts: int, initial: float, maximum: float) -> None:
    with pytest.raises(DefinitionError, match="at least one attempt"):
        Retry(attempts, initial, maximum)


def test_backoff_doubles_to_its_maximum_with_full_jitter() -> None:
    retry = Retry(attempts=10_000, initial=1, maximum=8)
    longest = [max(retry.delay(attempt) for _ in range(2000)) for attempt in (1, 2, 3, 4, 5, 9_999)]

    for reached, allowed in zip(longest, [1, 2, 4, 8, 8, 8], strict=True):
        assert 0.9 * allowed < reached <= allowed
    assert min(retry.delay(4) for _ in range(2000)) < 0.8


def test_the_fingerprint_tells_definitions_apart_that_one_saga_cannot_change_between() -> None:
    plain = define(compensatable(note, undo=NO_EFFECT), retriable(note, name="end"))
    same = define(compensatable(note, undo=NO_EFFECT, timeout=3), retriable(note, name="end", retry=Retry(2)))
    others = [
        define(compensatable(note, undo=NO_EFFECT), retriable(note, name="end"), version=2),
        define(compensatable(note, undo=NO_EFFECT), retriable(note, name="finish")),
        define(compensatable(note, undo=note), retriable(note, name="end")),
        define(retriable(note), retriable(note, name="end")),
        define(retriable(note, name="end"), retriable(note)),
    ]

    assert plain.fingerprint == same.fingerprint
    assert len({plain.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)


def test_state_comes_back_as_it_was_stored() -> None:
    saga = define(retriable(note))
    state = Transfer(id=uuid4(), amount=Decimal("12.3400000"))

    assert saga.load(saga.dump(state)) == state


def test_a_secret_is_no_state_since_it_would_be_stored_masked() -> None:
    class WithSecret(BaseModel):
        token: SecretStr

    saga = Saga("transfer", WithSecret, [retriable(end)])
    with pytest.raises(ValueError, match="does not survive being stored as JSON: token"):
        saga.dump(WithSecret(token=SecretStr("s3cret")))


def test_an_integer_that_json_cannot_keep_is_refused() -> None:
    class Big(BaseModel):
        number: int

    saga = Saga("transfer", Big, [retriable(end)])
    with pytest.raises(ValueError, match="does not survive being stored as JSON: number"):
        saga.dump(Big(number=2**64 + 1))


def test_a_state_of_wrong_types_is_refused() -> None:
    saga = define(retriable(note))
    with pytest.raises(ValueError, match="a field of Transfer holds a value of another type"):
        saga.dump(Transfer(id=uuid4()).model_copy(update={"id": "no uuid"}))
    with pytest.raises(TypeError, match="the state is a Transfer"):
        saga.dump(Other())  # type: ignore[arg-type]  # the wrong one is the test


def test_a_strict_model_is_read_as_the_json_that_it_is() -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)
        id: UUID

    saga = Saga("transfer", Strict, [retriable(end)])
    state = Strict(id=uuid4())
    assert saga.load(saga.dump(state)) == state


async def end(tx: Transaction) -> None: ...
