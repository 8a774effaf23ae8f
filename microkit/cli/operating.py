"""The commands of who operates a system, and their options: ``dlq``, ``bus``, ``outbox``."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from microkit.cli.folder import DEFAULT_FOLDER
from microkit.cli.options import (
    BusOption,
    DatabaseOption,
    FolderOption,
    JsonOption,
    ServiceOption,
    SystemOption,
)

_LOOKS: Final = (
    "\n\nLooks where the services' settings say. While they say memory://: at the `microkit up` that runs in --folder."
)

dlq_app = typer.Typer(help="Dead letters: messages that a consumer group gave up." + _LOOKS, no_args_is_help=True)
bus_app = typer.Typer(
    help="The bus: its topics, how far groups are behind, what passes." + _LOOKS, no_args_is_help=True
)
outbox_app = typer.Typer(help="The outboxes: events on their way to the bus." + _LOOKS, no_args_is_help=True)

TopicOption = Annotated[str | None, typer.Option("--topic", help="Messages of this topic only.")]
KeyOption = Annotated[str | None, typer.Option("--key", help="Messages of this key only.")]
GroupOption = Annotated[str | None, typer.Option("--group", help="This consumer group only.")]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", help="Given up for this reason only, such as attempts-exhausted.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Change nothing; show what would be done.")]


@dlq_app.command("ls", epilog="Example: microkit dlq ls --service billing --reason attempts-exhausted")
def dlq_ls(  # noqa: PLR0913  a command has its options as parameters
    *,
    service: ServiceOption = None,
    topic: TopicOption = None,
    group: GroupOption = None,
    key: KeyOption = None,
    reason: ReasonOption = None,
    limit: Annotated[int, typer.Option(help="Show so many at most.", min=1, max=1_000_000)] = 100,
    bus: BusOption = None,
    database: DatabaseOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """List dead letters, those of one key by their age."""
    from microkit.cli import dlq  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415
    from microkit.console.desk import Wanted  # noqa: PLC0415

    where = Where(service, system, bus, database, folder)
    dlq.ls(where, Wanted(service, topic, group, key, reason), limit=limit, json=json)


@dlq_app.command("show", epilog="Example: microkit dlq show billing.bills/3/17")
def dlq_show(
    letter: Annotated[str, typer.Argument(metavar="LETTER", help="A letter's id from `dlq ls`, or its event's id.")],
    *,
    service: ServiceOption = None,
    bus: BusOption = None,
    database: DatabaseOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Show one dead letter whole: why it was given up, its headers, its value."""
    from microkit.cli import dlq  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415

    dlq.show(Where(service, system, bus, database, folder), letter, json=json)


@dlq_app.command("redrive", epilog="Example: microkit dlq redrive --key 7f3c --rate 50 --dry-run")
def dlq_redrive(  # noqa: PLR0913  a command has its options as parameters
    letters: Annotated[
        list[str] | None, typer.Argument(metavar="[LETTER]...", help="These letters; without any, all that fit.")
    ] = None,
    *,
    dry_run: DryRunOption = False,
    rate: Annotated[float | None, typer.Option(help="At most so many letters a second.", min=0.001)] = None,
    max_replays: Annotated[
        int, typer.Option(help="Leave what came back so often already: no replay mends it.", min=1, max=1000)
    ] = 3,
    to: Annotated[
        str | None, typer.Option(metavar="GROUP", help="For this group, if the one that gave up has another name now.")
    ] = None,
    service: ServiceOption = None,
    topic: TopicOption = None,
    group: GroupOption = None,
    key: KeyOption = None,
    reason: ReasonOption = None,
    bus: BusOption = None,
    database: DatabaseOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Send dead letters back to their topics, where only the group that gave them up handles them again.

    Letters of one key go in their old order. Exits with 1 if any that fits was refused.
    """
    from microkit.cli import dlq  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415
    from microkit.console.desk import Pace, Wanted  # noqa: PLC0415

    where = Where(service, system, bus, database, folder)
    wanted = Wanted(service, topic, group, key, reason, letters or None)
    if not dlq.redrive(where, wanted, Pace(max_replays, rate, dry_run, to), json=json):
        raise typer.Exit(1)


@bus_app.command("topics", epilog="Example: microkit bus topics --bus redis://localhost:6379/0")
def bus_topics(
    *,
    service: ServiceOption = None,
    bus: BusOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """List the topics: partitions, messages that are kept, groups that read them."""
    from microkit.cli import bus as command  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415

    command.topics(Where(service, system, bus, None, folder), json=json)


@bus_app.command("lag", epilog="Example: microkit bus lag --group billing.reconcile")
def bus_lag(
    *,
    service: ServiceOption = None,
    group: GroupOption = None,
    bus: BusOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Show how many messages each group has not yet acknowledged."""
    from microkit.cli import bus as command  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415

    command.lag(Where(service, system, bus, None, folder), group, json=json)


@bus_app.command("tail", epilog="Example: microkit bus tail billing.bills --follow")
def bus_tail(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="The topic's name.")],
    *,
    last: Annotated[int, typer.Option("--last", "-n", help="Begin with so many of the newest.", min=0)] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until ^C.")] = False,
    service: ServiceOption = None,
    bus: BusOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Print the newest messages of a topic, one a line. It joins no group and moves nothing."""
    from microkit.cli import bus as command  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415

    command.tail(Where(service, system, bus, None, folder), topic, last=last, follow=follow, json=json)


@outbox_app.command("status", epilog="Example: microkit outbox status --service billing")
def outbox_status(
    *,
    service: ServiceOption = None,
    database: DatabaseOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Count the events of each outbox by topic and state; list relays at work and rows that the bus refused."""
    from microkit.cli import outbox  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415

    outbox.status(Where(service, system, None, database, folder), json=json)


@outbox_app.command("replay", epilog="Example: microkit outbox replay --since 15m --topic billing.bills --dry-run")
def outbox_replay(  # noqa: PLR0913  a command has its options as parameters
    *,
    since: Annotated[str, typer.Option(help="15m ago, or an instant: 2026-01-31T12:00:00+00:00.")],
    topic: TopicOption = None,
    key: KeyOption = None,
    dry_run: DryRunOption = False,
    service: ServiceOption = None,
    database: DatabaseOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Publish again what was written since then, with the old ids: right after a broker lost messages.

    Handlers that take a Transaction skip what they have done.
    """
    from microkit.cli import outbox  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415
    from microkit.console.desk import Rows  # noqa: PLC0415

    where = Where(service, system, None, database, folder)
    outbox.replay(where, since, Rows(service, topic, key, None, dry_run), json=json)


@outbox_app.command("unpark", epilog="Example: microkit outbox unpark --service billing --dry-run")
def outbox_unpark(
    *,
    topic: TopicOption = None,
    dry_run: DryRunOption = False,
    service: ServiceOption = None,
    database: DatabaseOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Try events again that the bus refused so often that they were parked."""
    from microkit.cli import outbox  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415
    from microkit.console.desk import Rows  # noqa: PLC0415

    where = Where(service, system, None, database, folder)
    outbox.unpark(where, Rows(service, topic, None, None, dry_run), json=json)
