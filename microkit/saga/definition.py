"""What a saga is: steps in the order they happen, each with its compensating transaction beside it.

::

    pay_bill = Saga(
        "pay-bill",
        PayBill,
        [
            compensatable(reserve_bill, undo=release_bill, timeout=5),
            pivot(submit_payment, timeout=30),
            retriable(settle_bill, timeout=5),
        ],
    )

    await pay_bill.start(tx, PayBill(payment_id=…, bill_id=…))     # in the transaction that decides it

The pattern and its words are Garcia-Molina and Salem's (*Sagas*, 1987) and Richardson's (*Microservices Patterns*,
4.3): compensatable steps can be undone, the pivot is the point of no return, retriable steps succeed in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from typing import Any, Generic, TypeVar
from uuid import UUID, uuid4

import orjson
from pydantic import BaseModel, ValidationError

from microkit.db import Transaction
from microkit.saga.enrol import enrol
from microkit.saga.limits import KeyOf, Limits, OnBusy, Rate
from microkit.saga.linter import lint
from microkit.saga.step import Step

State = TypeVar("State", bound=BaseModel)


class Saga(Generic[State]):
    """A definition. ``name`` and ``version`` are stored with each running saga, ``state`` is what travels from step to
    step and survives with it.

    Steps may be added, taken away or reordered only with a new ``version``; keep the old definition beside the new one
    until its last saga has ended. A running saga whose definition is gone is parked, not guessed, and goes on when it
    is offered again.

    ``key`` is a plain function of the state that says what the saga is about, such as ``lambda state:
    f"bill:{state.bill_id}"``. Of all sagas of the service with one key, of whatever definition, one is at work from its
    start to its end; a stuck one has not ended. Another one waits its turn (``on_busy="wait"``), or its start
    raises ``Conflict`` (``"refuse"``). ``concurrency`` is how many sagas of this name all engines of the service
    together carry on at once; those that wait for time or events do not count. ``rate`` is how often one may begin:
    those above it begin later, or, with ``on_busy="refuse"``, their start raises ``TooManyRequests``.

    Raises:
        DefinitionError: the steps cannot keep the promise that a saga ends; the message says what to change.
    """

    def __init__(
        self,
        name: str,
        state: type[State],
        steps: Sequence[Step],
        *,
        version: int = 1,
        key: KeyOf | None = None,
        on_busy: OnBusy = "wait",
        concurrency: int | None = None,
        rate: Rate | None = None,
    ) -> None:
        self.name = name
        self.state = state
        self.steps = tuple(steps)
        self.version = version
        self.limits = Limits(key, on_busy, concurrency, rate)
        lint(name, version, state, self.steps, self.limits)
        self.positions: Mapping[str, int] = {step.name: position for position, step in enumerate(self.steps)}
        self.places: Mapping[str, Step] = {each.name: each for step in self.steps for each in (step, *step.branches)}
        """Every step by its name, and the branches of groups."""

    def __repr__(self) -> str:
        return f"<Saga {self.name} v{self.version}: {' → '.join(step.name for step in self.steps)}>"

    @cached_property
    def fingerprint(self) -> str:
        """Equal for definitions under which the same running saga can go on."""
        shape = [_shape(step) for step in self.steps]
        return sha256("\n".join([self.name, str(self.version), *shape]).encode()).hexdigest()[:16]

    def dump(self, state: State) -> Any:
        """``state`` as JSON.

        Raises:
            ValueError: it would not come back from the database as it is. Secrets, for example, come back masked: keep
                a reference to them.
        """
        if not isinstance(state, self.state):
            raise TypeError(f"{self.name}: the state is a {self.state.__name__}, not {state!r:.100}")
        try:
            frozen = orjson.loads(state.model_dump_json(warnings="error"))
            again = self.load(frozen)
        except ValidationError as error:
            raise ValueError(f"{self.name}: the state does not survive being stored as JSON: {told(error)}") from None
        except ValueError:  # its text shows the value, which may be private
            raise ValueError(f"{self.name}: a field of {self.state.__name__} holds a value of another type") from None
        if again != state:
            changed = [name for name in self.state.model_fields if getattr(again, name) != getattr(state, name)]
            raise ValueError(f"{self.name}: the state does not survive being stored as JSON: {', '.join(changed)}")
        return frozen

    def load(self, frozen: Any) -> State:
        """The state that ``dump`` stored.

        Raises:
            ValidationError: it does not fit the model (any more).
        """
        return self.state.model_validate_json(orjson.dumps(frozen))

    async def start(self, tx: Transaction, state: State, *, saga_id: UUID | None = None) -> UUID:
        """Starts a saga in the caller's transaction: it runs if that commits. Returns its id.

        Starting a ``saga_id`` again does nothing, so that a repeated event starts one saga.

        Raises:
            ValueError: the state would not survive being stored, or has no key.
            Conflict: another saga has this id, or, with ``on_busy="refuse"``, another one has the key.
            TooManyRequests: with ``on_busy="refuse"``, more have begun than the rate allows.
        """
        new, saga_id = saga_id is None, saga_id or uuid4()
        key = self.limits.key_of(self.name, state)
        columns = {
            "name": self.name,
            "version": self.version,
            "fingerprint": self.fingerprint,
            "step": self.steps[0].name,
            "state": self.dump(state),
        }
        await enrol(tx, saga_id, columns, key, self.limits, new=new)
        return saga_id


def _shape(step: Step) -> str:
    """What must not change under a running saga. A step that is none of the newer kinds is told as it always was."""
    waits = [what for what, awaits in (("waits", step.awaits), ("undo-waits", step.undo_awaits)) if awaits]
    branches = [f"[{' '.join(map(_shape, step.branches))}]"] if step.branches else []
    return ":".join([step.name, step.kind, "undo" if step.undo else "-", *waits, *branches])


def told(error: ValidationError) -> str:
    """Where and what, without the value: that may be private, and this goes into logs."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'/'.join(map(str, first['loc']))}: {first['msg']}"
