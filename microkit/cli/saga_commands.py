"""``microkit saga`` and its options."""

from __future__ import annotations

from typing import Annotated

import typer

from microkit.cli.folder import DEFAULT_FOLDER
from microkit.cli.options import DatabaseOption, FolderOption, JsonOption, ServiceOption, SystemOption

saga_app = typer.Typer(
    help="Sagas: how they are, and moving on those that need an operator.\n\nLooks into the database that each "
    "service's settings name, or `microkit up` keeps in --folder. A running engine goes on with what was moved.",
    no_args_is_help=True,
)

SagaArgument = Annotated[str, typer.Argument(metavar="SAGA", help="The saga's id, from `saga ls`.")]
AnyArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The id of a saga, or of a process, such as a booking's number.")
]
AsOption = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="Who does it, for the audit trail; else the user of this machine."),
]
ReasonOption = Annotated[str | None, typer.Option("--reason", help="Why, for the audit trail.")]


@saga_app.command("ls", epilog="Example: microkit saga ls --stuck --name pay-bill --since 24h")
def saga_ls(  # noqa: PLR0913  a command has its options as parameters
    *,
    stuck: Annotated[
        bool, typer.Option("--stuck", help="Only those that wait for an operator, or for an event that is overdue.")
    ] = False,
    name: Annotated[str | None, typer.Option("--name", help="Only those of this definition.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only those that began since: 15m ago, or 2026-01-31T12:00:00+00:00.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Show so many at most.", min=1, max=1_000_000)] = 100,
    service: ServiceOption = None,
    database: DatabaseOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """List sagas, newest first, and the processes that are followed by their events."""
    from microkit.cli import saga  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415

    where = Where(service, system, None, database, folder)
    saga.ls(where, stuck=stuck, name=name, since=since, limit=limit, json=json)


@saga_app.command("show", epilog="Example: microkit saga show 0193f1c2-6a52-7cc0-8d7e-3c5b8a1f2e44")
def saga_show(
    saga_id: AnyArgument,
    *,
    service: ServiceOption = None,
    database: DatabaseOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Show one saga: where it stands, every attempt of its steps, what operators did, its state. Or one process: its
    events, and those that it awaits."""
    from microkit.cli import saga  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415

    saga.show(Where(service, system, None, database, folder), saga_id, json=json)


@saga_app.command("resume", epilog="Example: microkit saga resume 0193f1c2-… --as ada --reason 'the bank is back'")
def saga_resume(
    saga_id: SagaArgument,
    *,
    as_: AsOption = None,
    reason: ReasonOption = None,
    service: ServiceOption = None,
    database: DatabaseOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Let a stuck saga go on where it was parked, with its attempts counted anew."""
    from microkit.cli import saga  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415
    from microkit.saga import operations  # noqa: PLC0415

    where = Where(service, system, None, database, folder)
    saga.operate(
        where,
        saga_id,
        saga.Who(as_, reason),
        lambda tx, id_, who, store: operations.resume(tx, id_, who, sagas=store.sagas),
        json=json,
    )


@saga_app.command("retry-step", epilog="Example: microkit saga retry-step 0193f1c2-… submit_payment")
def saga_retry_step(  # noqa: PLR0913  a command has its options as parameters
    saga_id: SagaArgument,
    step: Annotated[
        str | None, typer.Argument(metavar="[STEP]", help="The step you mean: elsewhere the saga is left alone.")
    ] = None,
    *,
    as_: AsOption = None,
    reason: ReasonOption = None,
    service: ServiceOption = None,
    database: DatabaseOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Try the current step again now, whether it is stuck, waits for its next attempt, or hangs."""
    from microkit.cli import saga  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415
    from microkit.saga import operations  # noqa: PLC0415

    where = Where(service, system, None, database, folder)
    saga.operate(
        where,
        saga_id,
        saga.Who(as_, reason),
        lambda tx, id_, who, store: operations.retry_step(tx, id_, who, step=step, sagas=store.sagas),
        json=json,
    )


@saga_app.command("skip-step", epilog="Example: microkit saga skip-step 0193f1c2-… settle_bill --reason 'by hand'")
def saga_skip_step(  # noqa: PLR0913  a command has its options as parameters
    saga_id: SagaArgument,
    step: Annotated[
        str, typer.Argument(metavar="STEP", help="The step you mean: two who skip at once would else skip two.")
    ],
    *,
    as_: AsOption = None,
    reason: ReasonOption = None,
    service: ServiceOption = None,
    database: DatabaseOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Count the current step, or its compensation, as done without doing it. The state stays as it is."""
    from microkit.cli import saga  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415
    from microkit.saga import operations  # noqa: PLC0415

    where = Where(service, system, None, database, folder)
    saga.operate(
        where,
        saga_id,
        saga.Who(as_, reason),
        lambda tx, id_, who, store: operations.skip_step(tx, id_, who, step=step, sagas=store.sagas),
        json=json,
    )


@saga_app.command("compensate", epilog="Example: microkit saga compensate 0193f1c2-… --reason 'The bill is void.'")
def saga_compensate(  # noqa: PLR0913  a command has its options as parameters
    saga_id: SagaArgument,
    *,
    pivot_did_not_happen: Annotated[
        bool,
        typer.Option("--pivot-did-not-happen", help="You made sure: the pivot was tried, and has no effect elsewhere."),
    ] = False,
    as_: AsOption = None,
    reason: Annotated[
        str | None,
        typer.Option("--reason", help="Why, for the audit trail and for whoever is told why it was compensated."),
    ] = None,
    service: ServiceOption = None,
    database: DatabaseOption = None,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Turn a saga back that has not passed its pivot: what was done is undone, in reverse."""
    from microkit.cli import saga  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415
    from microkit.saga import operations  # noqa: PLC0415

    where = Where(service, system, None, database, folder)
    saga.operate(
        where,
        saga_id,
        saga.Who(as_, reason),
        lambda tx, id_, who, store: operations.compensate(
            tx, id_, who, sagas=store.sagas, pivot_did_not_happen=pivot_did_not_happen
        ),
        json=json,
    )


@saga_app.command("diagram", epilog="Example: microkit saga diagram pay-bill > docs/pay-bill.mmd")
def saga_diagram(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the definition.")],
    *,
    version: Annotated[int | None, typer.Option(help="This version; else the newest.", min=1)] = None,
    service: ServiceOption = None,
    system: SystemOption = None,
    json: JsonOption = False,
) -> None:
    """Write a definition as a Mermaid flowchart: a saga's steps, its pivot, its compensations; a process's events."""
    from microkit.cli import saga  # noqa: PLC0415
    from microkit.cli.where import Where  # noqa: PLC0415

    saga.diagram(Where(service, system), name, version=version, json=json)
