"""The commands that ask the admin endpoints of running instances: ``admin``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from microkit.cli.folder import DEFAULT_FOLDER
from microkit.cli.options import FolderOption, JsonOption, ServiceOption, UrlOption

_LOOKS: Final = (
    "\n\nWithout --url they ask the services of the `microkit up` that runs in --folder. The database pools: "
    "`microkit pool`."
)

admin_app = typer.Typer(help="What running instances say of themselves." + _LOOKS, no_args_is_help=True)


@admin_app.command("health", epilog="Example: microkit admin health --json | jq .ok")
def health(
    *,
    service: ServiceOption = None,
    url: UrlOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Show the state of each instance and of its parts. Exits with 1 if any is down."""
    from microkit.cli import admin  # noqa: PLC0415

    if not admin.health(url or [], service, folder, json=json):
        raise typer.Exit(1)


@admin_app.command("info", epilog="Example: microkit admin info --service billing")
def info(
    *,
    service: ServiceOption = None,
    url: UrlOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Show versions, when each was started, and the settings that are not the default, with secrets masked."""
    _show("info", url, service, folder, json=json)


@admin_app.command("metrics", epilog="Example: microkit admin metrics --service billing --match http_server")
def metrics(
    *,
    match: Annotated[str, typer.Option("--match", metavar="TEXT", help="Only metrics with this in their name.")] = "",
    service: ServiceOption = None,
    url: UrlOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Show metrics: buckets of histograms left out, in JSON all there is."""
    from microkit.cli import admin  # noqa: PLC0415

    admin.metrics(url or [], service, folder, match, json=json)


@admin_app.command("log-level", epilog="Example: microkit admin log-level DEBUG --service billing")
def log_level(
    level: Annotated[
        str | None,
        typer.Argument(metavar="[LEVEL]", help="DEBUG, INFO, WARNING, ERROR or CRITICAL; without it, show it only."),
    ] = None,
    *,
    service: ServiceOption = None,
    url: UrlOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Show or change the log level, until the instance is started again."""
    from microkit.cli import admin  # noqa: PLC0415

    admin.log_level(url or [], service, folder, level, json=json)


@admin_app.command("breakers", epilog="Example: microkit admin breakers --service payment")
def breakers(
    *,
    service: ServiceOption = None,
    url: UrlOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Show the circuit breakers of the services that are called, and of their instances."""
    _show("breakers", url, service, folder, json=json)


@admin_app.command("endpoints", epilog="Example: microkit admin endpoints --service gateway")
def endpoints(
    *,
    service: ServiceOption = None,
    url: UrlOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Show which instances of other services each knows, and which it leaves out."""
    _show("endpoints", url, service, folder, json=json)


@admin_app.command("sagas", epilog="Example: microkit admin sagas --service payment")
def sagas(
    *,
    service: ServiceOption = None,
    url: UrlOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Show the saga engines and the sagas that began last. For more, and to act on them: `microkit saga`."""
    _show("sagas", url, service, folder, json=json)


@admin_app.command("outbox", epilog="Example: microkit admin outbox --service billing")
def outbox(
    *,
    service: ServiceOption = None,
    url: UrlOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Show the relays and what waits in each outbox. To act on it: `microkit outbox`."""
    _show("outbox", url, service, folder, json=json)


@admin_app.command("consumers", epilog="Example: microkit admin consumers --service billing")
def consumers(
    *,
    service: ServiceOption = None,
    url: UrlOption = None,
    folder: FolderOption = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """Show how each consumer group gets on, in each instance."""
    _show("consumers", url, service, folder, json=json)


def _show(what: str, urls: list[str] | None, service: str | None, folder: Path, *, json: bool) -> None:
    from microkit.cli import admin  # noqa: PLC0415

    admin.show(what, urls or [], service, folder, json=json)
