"""The commands and their options. Each loads what it needs when it runs, so that ``--help`` is there at once."""

from __future__ import annotations

from typing import Annotated

import typer

from microkit.cli.admin_commands import admin_app
from microkit.cli.evolving import asyncapi, events_app
from microkit.cli.folder import DEFAULT_FOLDER
from microkit.cli.gateway import gateway_app
from microkit.cli.migrating import migrate_app
from microkit.cli.operating import bus_app, dlq_app, outbox_app
from microkit.cli.options import FolderOption, JsonOption, ServiceOption, SystemOption, UrlOption, scaled
from microkit.cli.saga_commands import saga_app

app = typer.Typer(
    help="Runs and looks after systems of microkit services.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="The settings of a service.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(migrate_app, name="migrate")
app.add_typer(dlq_app, name="dlq")
app.add_typer(bus_app, name="bus")
app.add_typer(outbox_app, name="outbox")
app.add_typer(saga_app, name="saga")
app.add_typer(gateway_app, name="gateway")
app.add_typer(admin_app, name="admin")
app.command("asyncapi", epilog="Example: microkit asyncapi billing --yaml")(asyncapi)
app.add_typer(events_app, name="events")

SystemArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODULE:SYSTEM",
        help="The system, as module and variable. The default is `system` under [tool.microkit] in pyproject.toml.",
        show_default=False,
    ),
]
ServiceArgument = Annotated[str, typer.Argument(metavar="SERVICE", help="The service's name.")]


@app.command(epilog="Example: microkit up reference.billpay.system:system --seed")
def up(  # noqa: PLR0913  the options of a command
    system: SystemArgument = None,
    *,
    seed: Annotated[bool, typer.Option("--seed", help="Fill in demo data and print credentials that work.")] = False,
    folder: FolderOption = DEFAULT_FOLDER,
    bus: Annotated[
        str | None,
        typer.Option(
            "--bus",
            metavar="KIND",
            help="The bus that the services share: memory (memory://?faults=… fails on purpose), redis or kafka. The "
            "default is memory, and redis with --real.",
            show_default=False,
        ),
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(
            "--database-url",
            metavar="URL",
            help="A PostgreSQL server of yours: each service has a database there, made when missing.",
            show_default=False,
        ),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option("--redis-url", metavar="URL", help="A Redis or Valkey of yours as the bus.", show_default=False),
    ] = None,
    kafka: Annotated[
        str | None,
        typer.Option("--kafka", metavar="URL", help="A Kafka broker of yours as the bus.", show_default=False),
    ] = None,
    real: Annotated[
        bool,
        typer.Option(
            "--real",
            help="Start PostgreSQL and a broker (Valkey, or Kafka with --bus kafka), and run each service as a process "
            "of its own. --database-url, --redis-url and --kafka name servers of yours in their place.",
        ),
    ] = False,
    scale: Annotated[
        list[str] | None,
        typer.Option(
            "--scale",
            metavar="SERVICE=N",
            help="Run N instances of a service, each on a port of its own, with one database. May be given repeatedly.",
            show_default=False,
        ),
    ] = None,
    port_offset: Annotated[int, typer.Option(help="Added to each service's port.", min=0, max=60000)] = 0,
    console_port: Annotated[int, typer.Option(help="The console's port, before the offset.", min=0, max=65535)] = 3900,
    json: JsonOption = False,
) -> None:
    """Start every service of a system in this process, each on its own port with its own database.

    Ends with ^C or SIGTERM, after the work under way is done; a second ^C ends at once.
    """
    from microkit.cli.holding import UpOptions  # noqa: PLC0415
    from microkit.cli.servers_given import bus_wanted  # noqa: PLC0415

    wanted = bus_wanted(bus, redis_url, kafka, real=real)
    options = UpOptions(folder, seed, wanted, database_url, scaled(scale or []), port_offset, console_port, json)
    if real:
        from microkit.cli.up_real import UpReal  # noqa: PLC0415

        UpReal(system, options).run()
        return
    from microkit.cli.up import Up  # noqa: PLC0415

    Up(system, options).run()


@app.command(epilog="Example: BILLING_PORT=8080 microkit run billing")
def run(service: ServiceArgument, *, system: SystemOption = None) -> None:
    """Run one service as a process of its own, as in production: its settings say where it listens and on what.

    Ends with SIGTERM or ^C, after the work under way is done; a second one ends at once. Exits with 1 if the service
    cannot start, or cannot go on.
    """
    from microkit.cli.run import run as run_service  # noqa: PLC0415

    run_service(service, system)


@app.command(epilog="Example: microkit demo --json | jq .ok")
def demo(system: SystemArgument = None, *, folder: FolderOption = DEFAULT_FOLDER, json: JsonOption = False) -> None:
    """Tell the system's story against a running `microkit up`: each call, each event, the saga's steps, the trace.

    Exits with 1 if anything is not as it should be.
    """
    from microkit.cli.demo import tell  # noqa: PLC0415

    if not tell(system, folder=folder, json=json):
        raise typer.Exit(1)


@app.command(epilog="Example: microkit drill --restarts 100 --rate 100 --json | jq .ok")
def drill(
    system: SystemArgument = None,
    *,
    restarts: Annotated[int, typer.Option(help="How many processes are restarted, one after the other.", min=1)] = 20,
    rate: Annotated[float, typer.Option(help="Requests a second.", min=0.1, max=10000)] = 50.0,
    kill: Annotated[bool, typer.Option("--kill", help="Kill them with SIGKILL instead of letting them drain.")] = False,
    servers: Annotated[
        bool, typer.Option("--servers", help="With --kill: the database server and the broker, too.")
    ] = False,
    away: Annotated[
        float, typer.Option(help="With --kill: seconds that each stays away before it is started again.", min=0)
    ] = 0.0,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Restart the processes of a running `microkit up --real` under load, and see whether anybody noticed.

    Exits with 1 if anything was lost or doubled, or, unless they were killed, if a request did not succeed.
    """
    from microkit.cli.drill import drill as run_drill  # noqa: PLC0415
    from microkit.drill import Plan  # noqa: PLC0415

    if not run_drill(system, folder=folder, plan=Plan(restarts, rate, kill, servers, away), json=json):
        raise typer.Exit(1)


@app.command(epilog="Example: microkit doctor billing --json | jq .ok")
def doctor(
    service: Annotated[
        str | None, typer.Argument(metavar="SERVICE", help="One service; without it, all.", show_default=False)
    ] = None,
    *,
    system: SystemOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Look for what would keep services from starting or from holding under load, and say what to do about it.

    Settings, ports, database (version, clock, migrations, connections), replica, bus and registry; without a service
    also the folder, the services that run there, and what `up --real` starts. It changes nothing, and exits with 1 if
    anything is an error.
    """
    from microkit.cli.doctor import doctor as run  # noqa: PLC0415

    if not run(service, system, folder, json=json):
        raise typer.Exit(1)


@app.command(epilog="Example: microkit pool --service billing")
def pool(
    *,
    service: ServiceOption = None,
    url: UrlOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Show the database pools of running services: who has a connection, for how long, and where it was taken.

    Without --url it asks the services of a running `microkit up` that have admin endpoints.
    """
    from microkit.cli.pool import pool as run  # noqa: PLC0415

    run(url or [], service, folder, json=json)


@config_app.command("show", epilog="Example: microkit config show billing")
def config_show(service: ServiceArgument, *, system: SystemOption = None, json: JsonOption = False) -> None:
    """Show each setting of a service: its value with secrets masked, where it comes from, its default, its meaning."""
    from microkit.cli.config import show  # noqa: PLC0415

    show(service, system, json=json)


@app.command(epilog="Example: microkit version")
def version(*, json: JsonOption = False) -> None:
    """Print the version."""
    from importlib.metadata import version as installed  # noqa: PLC0415
    from json import dumps  # noqa: PLC0415

    found = installed("microkit")
    typer.echo(dumps({"version": found}) if json else found)
