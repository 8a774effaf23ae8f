"""The commands about the events' contracts, and their options: ``asyncapi``, ``events``."""

from __future__ import annotations

from typing import Annotated

import typer

from microkit.compatibility import Mode

events_app = typer.Typer(help="Events and how their schemas change.", no_args_is_help=True)

SystemOption = Annotated[
    str | None,
    typer.Option("--system", metavar="MODULE:SYSTEM", help="The system, if not the one of pyproject.toml."),
]


def asyncapi(
    service: Annotated[
        str | None, typer.Argument(metavar="[SERVICE]", help="One service; the default is the whole system.")
    ] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="The whole system, as without a SERVICE.")] = False,
    servers: Annotated[
        bool, typer.Option("--servers", help="Name the brokers that the settings name, without their secrets.")
    ] = False,
    yaml: Annotated[bool, typer.Option("--yaml", help="Write YAML.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write JSON, as without --yaml.")] = False,
    system: SystemOption = None,
) -> None:
    """Write the AsyncAPI 3 document of a service or a system: its topics, events, who publishes and who listens.

    Without --servers it says the same everywhere, so that it can be committed and compared.
    """
    from microkit.cli.asyncapi import write  # noqa: PLC0415
    from microkit.errors import ConfigurationError  # noqa: PLC0415

    if yaml and json:
        raise ConfigurationError("Choose --yaml or --json")
    if service is not None and everything:
        raise ConfigurationError(f"Choose {service} or --all")
    write(service, system, servers=servers, yaml=yaml)


@events_app.command("check", epilog="Example: microkit asyncapi | microkit events check contracts/events.json -")
def check(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="The AsyncAPI document in force: JSON or YAML, - is stdin.")
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The one that is to follow it.")],
    *,
    mode: Annotated[
        Mode,
        typer.Option(
            "--mode",
            help="backward: new services read old messages. forward: services that are deployed read new messages. "
            "full: both.",
        ),
    ] = Mode.FULL,
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept", metavar="EVENT", help="Only warn of changes of this event; may be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")] = False,
) -> None:
    """Refuse changes of events that break who reads them: deployed services, or new ones that meet old messages.

    Exits with 1 if a change is refused. A higher version= with an upcaster makes it allowed.
    """
    from microkit.cli.events import check as run  # noqa: PLC0415

    if not run(old, new, mode=mode, accept=accept or [], json=json):
        raise typer.Exit(1)
