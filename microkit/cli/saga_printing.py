"""How sagas are printed, for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from json import dumps
from typing import Any, Final

from microkit.cli.printing import clock, print_table, say, short
from microkit.saga.tables import Status
from microkit.saga.view import SagaStory, SagaView, WaitView

_HEADINGS: Final = (
    "saga",
    "service",
    "name",
    "status",
    "step",
    "attempts",
    "error",
    "began (UTC)",
    "next attempt (UTC)",
)


def print_list(found: Sequence[tuple[str, SagaView]]) -> None:
    """A table of sagas, each with its service."""
    print_table("Sagas", _HEADINGS, [_row(service, saga) for service, saga in found])


def _row(service: str, saga: SagaView) -> tuple[Any, ...]:
    return (
        saga.id,
        service,
        saga.name,
        saga.status,
        _step(saga.step or "", saga.direction),
        saga.attempts,
        short(f"waits for {saga.key}") if saga.status is Status.QUEUED else short(saga.error),
        time(saga.created_at),
        time(saga.next_at or (saga.not_before if saga.status is Status.QUEUED else None)),
    )


def print_story(service: str, saga: SagaStory) -> None:
    """Where a saga stands, what it waits for, its history, and what operators did."""
    print_table(f"Saga {saga.id}", ("what", "value"), [fact for fact in _facts(service, saga) if fact[1]])
    if saga.waits:
        print_table(
            "Waits",
            ("at", "for", "told by", "is", "since (UTC)", "until (UTC)", "came (UTC)"),
            [
                (each.place, _events(each), each.value, each.status, time(each.since), time(each.due),
                 time(each.arrived_at))
                for each in saga.waits
            ],
        )  # fmt: skip
    if saga.branches:
        print_table(
            "Branches of parallel groups",
            ("branch", "is", "attempts", "happened", "reason", "since (UTC)"),
            [
                (each.place, each.status, each.attempts, "yes" if each.happened else "no", short(each.reason),
                 time(each.updated_at))
                for each in saga.branches
            ],
        )  # fmt: skip
    _print_steps(saga)
    if saga.operations:
        print_table(
            "Operators",
            ("what", "step", "was", "by", "reason", "when (UTC)"),
            [
                (each.operation, _step(each.step, each.direction), each.status, each.operator, each.reason,
                 time(each.done_at))
                for each in saga.operations
            ],
        )  # fmt: skip
    if saga.status is Status.STUCK:
        say(f"It waits for you: microkit saga resume | retry-step | skip-step | compensate {saga.id}")
    elif saga.behind is not None:
        say(f"It waits until another has ended: microkit saga show {saga.behind}")


def _facts(service: str, saga: SagaStory) -> list[tuple[str, object]]:
    awaited = [f"{_events(each)} told by {each.value}" for each in saga.waits if each.status == "waiting"]
    return [
        ("name", f"{saga.name}, version {saga.version}"),
        ("service", service),
        ("status", saga.status),
        ("step", _step(saga.step or "", saga.direction)),
        ("attempts", str(saga.attempts)),
        ("waits for", "; ".join(awaited)),
        ("key", saga.key),
        ("waits for the saga", saga.behind),
        ("not before (UTC)", time(saga.not_before)),
        ("left out", ", ".join(saga.left_out)),
        ("error", saga.error),
        ("compensated because of", f"{saga.failure.step}: {saga.failure.reason}" if saga.failure else None),
        ("began (UTC)", time(saga.created_at)),
        ("next attempt (UTC)", time(saga.next_at)),
        ("waits since (UTC)", time(saga.not_yet_since)),
        ("trace", saga.trace_id),
        ("state", dumps(saga.state, ensure_ascii=False)),
    ]


def _print_steps(saga: SagaStory) -> None:
    print_table(
        "Steps",
        ("step", "attempt", "ended", "began (UTC)", "seconds", "error"),
        [
            (
                _step(each.step, each.direction),
                each.attempt,
                each.status,
                time(each.started_at),
                f"{(each.ended_at - each.started_at).total_seconds():.3f}" if each.ended_at else "",
                short(each.error),
            )
            for each in saga.steps
        ],
    )


def time(moment: datetime | None) -> str:
    """A time as people read it, in UTC."""
    return clock(moment.isoformat()) if moment else ""


def _events(wait: WaitView) -> str:
    return " or ".join(each.rpartition(".")[2] for each in wait.events)


def _step(step: str, direction: str) -> str:
    return f"undo {step}" if step and direction == "undo" else step
