"""``microkit saga``: sagas are listed, looked into, drawn, and moved on by operators."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from getpass import getuser
from json import dumps
from platform import node
from typing import Any
from uuid import UUID

from microkit.cli.instants import read_since
from microkit.cli.printing import clock, print_json, print_table, say, short
from microkit.cli.where import Store, Where
from microkit.db import Transaction
from microkit.errors import ConfigurationError, Conflict, NotFound
from microkit.page import MAX_PAGE, PageRequest
from microkit.saga.diagram import mermaid
from microkit.saga.operations import Operator
from microkit.saga.tables import Status
from microkit.saga.view import SagaStory, SagaView, list_sagas, show_saga

Command = Callable[[Transaction, UUID, Operator, Store], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Who:
    """What a command was told about who gives it and why."""

    name: str | None
    reason: str | None

    def operator(self) -> Operator:
        """By default the user of this machine.

        Raises:
            ConfigurationError: nobody knows who that is.
            BadRequest: the name or the reason is none.
        """
        if self.name is not None:
            return Operator(self.name, self.reason)
        try:
            return Operator(f"{getuser()}@{node()}"[:200], self.reason)
        except (KeyError, OSError, ImportError):
            raise ConfigurationError("Who are you? This machine has no name for you: give one with --as") from None


def ls(where: Where, *, stuck: bool, name: str | None, since: str | None, limit: int, json: bool) -> None:
    """Prints the newest ``limit`` sagas.

    Raises:
        ConfigurationError: ``since`` is no instant, or there is nowhere to look.
    """
    begin = None if since is None else read_since(since)
    found, more = asyncio.run(_list(where, stuck=stuck, name=name, since=begin, limit=limit))
    if json:
        print_json({"sagas": [_document(service, saga) for service, saga in found], "more": more})
        return
    if not found:
        say("No sagas." if not stuck else "No saga is stuck.")
        return
    print_table("Sagas", _HEADINGS, [_row(service, saga) for service, saga in found])
    if more:
        say(f"There are more: --limit {limit * 10}, or choose with --stuck, --name, --since.")
    say("More of one: microkit saga show SAGA")


def show(where: Where, saga_id: str, *, json: bool) -> None:
    """Prints one saga with its steps and what operators did.

    Raises:
        ConfigurationError: that is no id, or there is nowhere to look.
        NotFound: there is no such saga.
    """
    service, story = asyncio.run(_show(where, _read_id(saga_id)))
    if json:
        print_json(_document(service, story))
    else:
        _print_story(service, story)


def operate(where: Where, saga_id: str, who: Who, command: Command, *, json: bool) -> None:
    """Has ``command`` done to the saga as it stands now, and prints where it stands then.

    Raises:
        ConfigurationError: that is no id, or there is nowhere to look.
        NotFound: there is no such saga.
        Conflict: it cannot be done, and nothing was.
    """
    service, before, story = asyncio.run(_operate(where, _read_id(saga_id), who.operator(), command))
    if json:
        print_json(_document(service, story))
        return
    done = story.operations[-1]
    at = f", at step {story.step}" if story.step else ""
    say(f"{done.operation} of step {done.step} by {done.operator}: saga {story.id} is {story.status}{at}.")
    if before.steps and before.steps[-1].ended_at is None:
        say(
            f"An attempt of {done.step} was under way. What it writes later changes nothing here; what it does "
            "elsewhere may have happened."
        )


def diagram(where: Where, name: str, *, version: int | None, json: bool) -> None:
    """Prints the Mermaid text of a definition, the newest version if none is named.

    Raises:
        ConfigurationError: there is no such definition.
    """
    known = where.sagas()
    fitting = [each for each in known if each[1].name == name and version in (None, each[1].version)]
    if not fitting:
        there = ", ".join(sorted({f"{saga.name} (version {saga.version})" for _, saga in known})) or "none"
        raise ConfigurationError(
            f"There is no saga {name!r}{f' of version {version}' if version else ''}; there is {there}"
        )
    service, saga = max(fitting, key=lambda each: each[1].version)
    text = mermaid(saga)
    if json:
        print_json({"service": service, "name": saga.name, "version": saga.version, "mermaid": text})
    else:
        print(text, end="")  # noqa: T201  to be piped into a page: no table, no colours


_HEADINGS = ("saga", "service", "name", "status", "step", "attempts", "error", "began (UTC)", "next attempt (UTC)")


def _row(service: str, saga: SagaView) -> tuple[Any, ...]:
    return (
        saga.id,
        service,
        saga.name,
        saga.status,
        _step(saga.step or "", saga.direction),
        saga.attempts,
        short(saga.error),
        _time(saga.created_at),
        _time(saga.next_at),
    )


def _print_story(service: str, saga: SagaStory) -> None:
    facts: list[tuple[str, object]] = [
        ("name", f"{saga.name}, version {saga.version}"),
        ("service", service),
        ("status", saga.status),
        ("step", _step(saga.step or "", saga.direction)),
        ("attempts", saga.attempts),
        ("error", saga.error),
        ("compensated because of", f"{saga.failure.step}: {saga.failure.reason}" if saga.failure else None),
        ("began (UTC)", _time(saga.created_at)),
        ("next attempt (UTC)", _time(saga.next_at)),
        ("waits since (UTC)", _time(saga.not_yet_since)),
        ("trace", saga.trace_id),
        ("state", dumps(saga.state, ensure_ascii=False)),
    ]
    print_table(f"Saga {saga.id}", ("what", "value"), [fact for fact in facts if fact[1] not in (None, "")])
    print_table(
        "Steps",
        ("step", "attempt", "ended", "began (UTC)", "seconds", "error"),
        [
            (
                _step(each.step, each.direction),
                each.attempt,
                each.status,
                _time(each.started_at),
                f"{(each.ended_at - each.started_at).total_seconds():.3f}" if each.ended_at else "",
                short(each.error),
            )
            for each in saga.steps
        ],
    )
    if saga.operations:
        print_table(
            "Operators",
            ("what", "step", "was", "by", "reason", "when (UTC)"),
            [
                (op.operation, _step(op.step, op.direction), op.status, op.operator, op.reason, _time(op.done_at))
                for op in saga.operations
            ],
        )
    if saga.status is Status.STUCK:
        say(f"It waits for you: microkit saga resume | retry-step | skip-step | compensate {saga.id}")


def _step(step: str, direction: str) -> str:
    return f"undo {step}" if step and direction == "undo" else step


def _time(time: datetime | None) -> str:
    return clock(time.isoformat()) if time else ""


def _document(service: str, saga: SagaView) -> dict[str, Any]:
    return {"service": service, **saga.model_dump(mode="json")}


def _read_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is no saga's id; `microkit saga ls` lists them") from None


async def _list(
    where: Where, *, stuck: bool, name: str | None, since: datetime | None, limit: int
) -> tuple[list[tuple[str, SagaView]], bool]:
    found: list[tuple[str, SagaView]] = []
    async with where.stores() as stores:
        for store in stores:
            kept, cursor = 0, None
            while kept <= limit:
                request = PageRequest(limit=min(MAX_PAGE, limit + 1), cursor=cursor)
                async with store.database.transaction(read_only=True) as tx:
                    page = await list_sagas(tx, request, name=name, status=Status.STUCK if stuck else None, since=since)
                found += [(store.service, saga) for saga in page.items]
                kept, cursor = kept + len(page.items), page.next_cursor
                if cursor is None:
                    break
    found.sort(key=lambda each: each[1].created_at, reverse=True)
    return found[:limit], len(found) > limit


async def _show(where: Where, saga_id: UUID) -> tuple[str, SagaStory]:
    async with where.stores() as stores:
        store, story = await _find(stores, saga_id)
        return store.service, story


async def _operate(
    where: Where, saga_id: UUID, operator: Operator, command: Command
) -> tuple[str, SagaStory, SagaStory]:
    async with where.stores() as stores:
        store, before = await _find(stores, saga_id)
        seen = Operator(operator.name, operator.reason, before.epoch)
        try:
            await store.database.run(lambda tx: command(tx, saga_id, seen, store))
        except Conflict as error:
            raise _with_last(error, before) from None
        return store.service, before, (await _find([store], saga_id))[1]


def _with_last(error: Conflict, saga: SagaStory) -> Conflict:
    """Says who was there last: their command may be why this one cannot be done."""
    if not saga.operations:
        return error
    last = saga.operations[-1]
    return Conflict(
        f"{error} (before you, {last.operator} did {last.operation} of step {last.step}, {_time(last.done_at)})"
    )


async def _find(stores: list[Store], saga_id: UUID) -> tuple[Store, SagaStory]:
    for store in stores:
        try:
            async with store.database.transaction(read_only=True) as tx:
                return store, await show_saga(tx, saga_id)
        except NotFound:
            continue
    names = ", ".join(store.service for store in stores if store.service) or "that database"
    raise NotFound(f"There is no saga {saga_id} in {names}; `microkit saga ls` lists them")
