"""``microkit gateway``: the routes of a gateway, for other proxies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from microkit.cli.options import JsonOption, SystemOption

gateway_app = typer.Typer(help="The gateway's routes.", no_args_is_help=True)


@gateway_app.callback()
def _several() -> None:
    """The gateway's routes."""


@gateway_app.command(
    "render", epilog="Example: microkit gateway render nginx --listen 8080 --output /etc/nginx/nginx.conf"
)
def render(  # noqa: PLR0913  the options of a command
    format: Annotated[str, typer.Argument(metavar="FORMAT", help="What to write: nginx.")],  # noqa: A002
    *,
    service: Annotated[
        str | None,
        typer.Option(
            "--service",
            metavar="NAME",
            help="The service that has the gateway, if there are several.",
            show_default=False,
        ),
    ] = None,
    listen: Annotated[str, typer.Option("--listen", metavar="ADDRESS", help="Where the proxy listens.")] = "8080",
    upstream: Annotated[
        list[str] | None,
        typer.Option(
            "--upstream",
            metavar="SERVICE=URL,URL",
            help="Where a service is, if the gateway's SERVICES setting does not say. May be given repeatedly.",
            show_default=False,
        ),
    ] = None,
    resolver: Annotated[
        str, typer.Option("--resolver", metavar="ADDRESS", help="A name server: names are looked up again and again.")
    ] = "",
    folder: Annotated[
        Path, typer.Option("--folder", help="Where the proxy keeps its pid and bodies on their way; absolute.")
    ] = Path("/var/cache/nginx"),
    access_log: Annotated[
        str, typer.Option("--access-log", metavar="FILE", help="Where it writes a line for each request, or off.")
    ] = "/dev/stdout",
    through: Annotated[
        bool, typer.Option("--through", help="Send every route through the gateway: the proxy only stands in front.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Where to write it; else stdout.", show_default=False),
    ] = None,
    system: SystemOption = None,
    json: JsonOption = False,
) -> None:
    """Write the configuration of another proxy from the gateway's routes.

    What the proxy cannot do it leaves to the gateway, which runs beside it with <SERVICE>_AUTH_ENDPOINT=true and the
    proxy's address in <SERVICE>_TRUSTED_PROXIES. Which routes those are, and why, is said on stderr, and stands in the
    file.
    """
    from microkit.cli.gateway_rendering import Rendering  # noqa: PLC0415
    from microkit.gateway.rendering import Placement  # noqa: PLC0415

    placement = Placement(listen, folder, resolver, access_log)
    Rendering(format, placement, upstream or [], through=through).write(service, system, output=output, json=json)
