"""``microkit saga``: sagas are listed, looked into, drawn, and moved on by operators; processes stand beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from getpass import getuser
from platform import node
from typing import Any
from uuid import UUID

from microkit.choreography.diagram import mermaid as mermaid_of_process
from microkit.choreography.view import ProcessStory, ProcessView
from microkit.cli import processes, saga_printing
from microkit.cli.instants import read_since
from microkit.cli.printing import print_json, say
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
    """Prints the newest ``limit`` sagas, and as many processes.

    Raises:
        ConfigurationError: ``since`` is no instant, or there is nowhere to look.
    """
    begin = None if since is None else read_since(since)
    listed = asyncio.run(_list(where, stuck=stuck, name=name, since=begin, limit=limit))
    found, followed, more = listed.sagas, listed.processes, listed.more
    if json:
        print_json(
            {
                "sagas": [_document(service, saga) for service, saga in found],
                "processes": [processes.document(service, each) for service, each in followed],
                "more": more,
            }
        )
        return
    if not found:
        say("No sagas." if not stuck else "No saga is stuck.")
    else:
        saga_printing.print_list(found)
    if followed:
        processes.print_list(followed)
    if not (found or followed):
        return
    if more:
        say(f"There are more: --limit {limit * 10}, or choose with --stuck, --name, --since.")
    say("More of one: microkit saga show ID")


def show(where: Where, saga_id: str, *, json: bool) -> None:
    """Prints one saga with its steps and what operators did, and the processes that have this id.

    Raises:
        ConfigurationError: there is nowhere to look.
        NotFound: there is no such saga, and no process.
    """
    saga, followed = asyncio.run(_show(where, saga_id))
    if json:
        found = [processes.document(service, story) for service, story in followed]
        print_json({**(_document(*saga) if saga else {}), "processes": found})
        return
    if saga:
        saga_printing.print_story(*saga)
    for service, story in followed:
        processes.print_story(service, story)


def operate(where: Where, saga_id: str, who: Who, command: Command, *, json: bool) -> None:
    """Has ``command`` done to the saga as it stands now, and prints where it stands then.

    Raises:
        ConfigurationError: that is no saga's id, or there is nowhere to look.
        NotFound: there is no such saga.
        Conflict: it cannot be done, and nothing was; or it is a process, which nobody carries out.
    """
    service, before, story = asyncio.run(_operate(where, saga_id, who.operator(), command))
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
    """Prints the Mermaid text of a definition, of a saga or else of a process; of versions the newest if none is named.

    Raises:
        ConfigurationError: there is no such definition.
    """
    document = _drawn(where, name, version)
    if json:
        print_json(document)
    else:
        print(document["mermaid"], end="")  # noqa: T201  to be piped into a page: no table, no colours


def _drawn(where: Where, name: str, version: int | None) -> dict[str, Any]:
    known, followed = where.sagas(), where.processes()
    fitting = [each for each in known if each[1].name == name and version in (None, each[1].version)]
    if fitting:
        service, saga = max(fitting, key=lambda each: each[1].version)
        return {"service": service, "name": saga.name, "version": saga.version, "mermaid": mermaid(saga)}
    for service, process in followed:
        if process.name == name and version is None:
            return {"service": service, "name": process.name, "mermaid": mermaid_of_process(process)}
    names = [f"{saga.name} (version {saga.version})" for _, saga in known] + [each.name for _, each in followed]
    there = ", ".join(sorted(set(names))) or "none"
    raise ConfigurationError(
        f"There is no saga {name!r}{f' of version {version}' if version else ''}; there is {there}"
    )


def _document(service: str, saga: SagaView) -> dict[str, Any]:
    return {"service": service, **saga.model_dump(mode="json")}


def _read_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class _Listed:
    """What there is, each with its service. ``more``: there is more of either than was asked for."""

    sagas: list[tuple[str, SagaView]]
    processes: list[tuple[str, ProcessView]]
    more: bool


async def _list(where: Where, *, stuck: bool, name: str | None, since: datetime | None, limit: int) -> _Listed:
    found: list[tuple[str, SagaView]] = []
    followed: list[tuple[str, ProcessView]] = []
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
            followed += await processes.find(store, stuck=stuck, name=name, since=since, limit=limit)
    found.sort(key=lambda each: each[1].created_at, reverse=True)
    followed.sort(key=lambda each: each[1].began_at, reverse=True)
    return _Listed(found[:limit], followed[:limit], max(len(found), len(followed)) > limit)


async def _show(where: Where, id_: str) -> tuple[tuple[str, SagaStory] | None, list[tuple[str, ProcessStory]]]:
    async with where.stores() as stores:
        followed = await processes.stories(stores, id_)
        try:
            store, story = await _find(stores, id_)
        except NotFound:
            if not followed:
                raise
            return None, followed
        return (store.service, story), followed


async def _operate(where: Where, id_: str, operator: Operator, command: Command) -> tuple[str, SagaStory, SagaStory]:
    async with where.stores() as stores:
        try:
            store, before = await _find(stores, id_)
        except NotFound:
            if followed := await processes.stories(stores, id_):
                _, story = followed[0]
                raise Conflict(
                    f"{story.id} is the process {story.name}, known by its events alone: nothing carries it out, so "
                    "nothing can be moved on here; `microkit saga show` says whose turn it is"
                ) from None
            raise
        saga_id = before.id
        seen = Operator(operator.name, operator.reason, before.epoch)
        try:
            await store.database.run(lambda tx: command(tx, saga_id, seen, store))
        except Conflict as error:
            raise _with_last(error, before) from None
        return store.service, before, (await _find([store], id_))[1]


def _with_last(error: Conflict, saga: SagaStory) -> Conflict:
    """Says who was there last: their command may be why this one cannot be done."""
    if not saga.operations:
        return error
    last = saga.operations[-1]
    when = saga_printing.time(last.done_at)
    return Conflict(f"{error} (before you, {last.operator} did {last.operation} of step {last.step}, {when})")


async def _find(stores: list[Store], id_: str) -> tuple[Store, SagaStory]:
    saga_id = _read_id(id_)
    names = ", ".join(store.service for store in stores if store.service) or "that database"
    if saga_id is None:
        raise NotFound(f"{id_!r} is no saga's id, and no process in {names}; `microkit saga ls` lists them")
    for store in stores:
        try:
            async with store.database.transaction(read_only=True) as tx:
                return store, await show_saga(tx, saga_id)
        except NotFound:
            continue
    raise NotFound(f"There is no saga {saga_id} in {names}; `microkit saga ls` lists them")
