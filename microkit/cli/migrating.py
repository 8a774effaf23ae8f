"""The commands about the tables of services, and their options: ``migrate``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from microkit.cli.options import JsonOption, SystemOption


class _UpByDefault(TyperGroup):
    """``migrate SERVICE`` is ``migrate up SERVICE``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and "--help" not in args[:1]:
            args = ["up", *args]
        return super().parse_args(ctx, args)


migrate_app = typer.Typer(
    cls=_UpByDefault,
    help="The tables of a service: brings them to the schema that its code needs, and looks at the scripts.\n\n"
    "`microkit migrate SERVICE` is short for `microkit migrate up SERVICE`.",
    epilog="Example: microkit migrate billing --check",
    no_args_is_help=True,
)

ServiceArgument = Annotated[str, typer.Argument(metavar="SERVICE", help="The service's name.")]


@migrate_app.command(
    "up", epilog="Example: BILLING_DATABASE_URL=postgresql+asyncpg://db/billing microkit migrate up billing"
)
def migrate_up(
    service: ServiceArgument,
    *,
    system: SystemOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; list what is missing and exit with 1 if anything is.")
    ] = False,
    target: Annotated[str, typer.Option("--target", metavar="REVISION", help="Go no further than this.")] = "head",
    wait: Annotated[
        float | None,
        typer.Option(
            "--wait",
            metavar="SECONDS",
            help="For another process that migrates, and for a table's users; 300 if not given.",
            min=0.0,
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Bring a service's database, as its settings name it, to the schema that its code needs.

    Several processes may do it at once: one works, the others wait and find it done.
    """
    from microkit.cli.migrate import up  # noqa: PLC0415

    if not up(service, system, target=target, check=check, wait=wait, json=json):
        raise typer.Exit(1)


@migrate_app.command("down", epilog="Example: microkit migrate down billing --to 0001 --yes")
def migrate_down(
    service: ServiceArgument,
    *,
    to: Annotated[
        str, typer.Option("--to", metavar="REVISION", help="The revision to go back to; -1 is one step, base is none.")
    ] = "-1",
    yes: Annotated[bool, typer.Option("--yes", help="Do it, and lose what the scripts had made.")] = False,
    system: SystemOption = None,
    json: JsonOption = False,
) -> None:
    """Take back scripts of a service. Without --yes it says which, and what they forget, and exits with 1."""
    from microkit.cli.migrate import down  # noqa: PLC0415

    if not down(service, system, to=to, yes=yes, json=json):
        raise typer.Exit(1)


@migrate_app.command("status", epilog="Example: microkit migrate status billing")
def migrate_status(service: ServiceArgument, *, system: SystemOption = None, json: JsonOption = False) -> None:
    """Show every script of a service's database: applied, current (where it is), or pending."""
    from microkit.cli.migrate import status  # noqa: PLC0415

    status(service, system, json=json)


@migrate_app.command("new", epilog='Example: microkit migrate new billing "bills have a due date"')
def migrate_new(
    service: ServiceArgument,
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="What changes, in a few words.")],
    *,
    database: Annotated[
        str | None,
        typer.Option("--database", metavar="URL", help="A database to try it on, instead of a fresh SQLite file."),
    ] = None,
    system: SystemOption = None,
    json: JsonOption = False,
) -> None:
    """Draft a script that makes the service's tables of what the scripts so far make."""
    from microkit.cli.migrate import new  # noqa: PLC0415

    new(service, message, system, database=database, json=json)


@migrate_app.command("sql", epilog="Example: microkit migrate sql billing > billing.sql")
def migrate_sql(
    service: ServiceArgument,
    *,
    new_database: Annotated[
        bool, typer.Option("--new-database", help="Everything from the start, without asking the database.")
    ] = False,
    system: SystemOption = None,
    json: JsonOption = False,
) -> None:
    """Print what `up` would do as SQL, for somebody who runs it by hand. Nothing is changed."""
    from microkit.cli.migrate import sql  # noqa: PLC0415

    sql(service, system, new_database=new_database, json=json)


@migrate_app.command("lint", epilog="Example: microkit migrate lint billing --since 0002")
def migrate_lint(
    services: Annotated[
        list[str] | None, typer.Argument(metavar="[SERVICE...]", help="Without one, all.", show_default=False)
    ] = None,
    *,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="REVISION",
            help="Look at what comes after it, as one release. Without it each script is a release.",
            show_default=False,
        ),
    ] = None,
    system: SystemOption = None,
    json: JsonOption = False,
) -> None:
    """Refuse scripts that an older running version would not survive, or that hold others up on PostgreSQL.

    Each finding says what to do instead. A script that means it says so (contract = "why", locks = "why") and is listed
    as accepted. Exits with 1 if anything is refused.
    """
    from microkit.cli.migrate import lint  # noqa: PLC0415

    if not lint(services or [], system, since=since, json=json):
        raise typer.Exit(1)
