"""What each command says of itself, and the small commands."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click import Command as ClickCommand
from typer.main import get_command

from microkit.cli.app import app
from tests.unit.cli.command import Command


def leaves(group: object, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], ClickCommand]]:
    found: list[tuple[tuple[str, ...], ClickCommand]] = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        here = (*path, name)
        found += leaves(command, here) if hasattr(command, "commands") else [(here, command)]
    return found


COMMANDS = leaves(get_command(app))


def test_there_are_commands() -> None:
    assert {" ".join(path) for path, _ in COMMANDS} == {
        *("up", "run", "demo", "drill", "config show", "version", "pool", "asyncapi"),
        *("migrate up", "migrate down", "migrate status", "migrate new", "migrate sql", "migrate lint"),
        *("doctor", "events check", "gateway render"),
        *("dlq ls", "dlq show", "dlq redrive", "bus topics", "bus lag", "bus tail"),
        *("outbox status", "outbox replay", "outbox unpark"),
        *("admin health", "admin info", "admin metrics", "admin log-level", "admin breakers", "admin endpoints"),
        *("admin sagas", "admin outbox", "admin consumers"),
        *("saga ls", "saga show", "saga diagram"),
        *("saga resume", "saga retry-step", "saga skip-step", "saga compensate"),
    }


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS])
def test_each_command_has_help_with_an_example_of_itself(path: tuple[str, ...], command: ClickCommand) -> None:
    assert command.help
    assert f"microkit {' '.join(path)}" in (command.epilog or "").removeprefix("Example: ")
    assert all(
        parameter.help for parameter in command.params if hasattr(parameter, "help") and parameter.name != "help"
    )


def test_help_loads_no_service(command: Command) -> None:
    heavy = "{'sqlalchemy', 'aiohttp', 'rich'}"
    code = f"import sys; from microkit.cli.app import app; print(sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"


def test_version_in_json(command: Command) -> None:
    assert json.loads(command.run("version", "--json").stdout)["version"].count(".") == 2


def test_config_show_masks_secrets(command: Command) -> None:
    env = {"ALPHA_DATABASE_URL": "postgresql+asyncpg://alpha:s3cretword@db/alpha"}
    shown = command.run("config", "show", "alpha", "--system", "tiny:system", "--json", env=env)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "s3cretword" not in shown.stdout
    settings = {setting["key"]: setting for setting in json.loads(shown.stdout)}
    assert settings["ALPHA_DATABASE_URL"]["source"] == "environment"
    assert settings["ALPHA_PORT"]["value"] == str(command.ports[1])
    table = command.run("config", "show", "alpha", "--system", "tiny:system", env=env)
    assert "s3cretword" not in table.stdout
    assert "Settings of alpha" in table.stdout


def test_a_wrong_setting_is_named(command: Command) -> None:
    shown = command.run("config", "show", "alpha", "--system", "tiny:system", env={"ALPHA_PROT": "1"})
    assert shown.returncode == 1
    assert "ALPHA_PROT" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_service_without_a_database_has_nothing_to_migrate(command: Command) -> None:
    failed = command.run("migrate", "alpha", "--system", "tiny:system")
    assert (failed.returncode, failed.stderr) == (1, "microkit: The service alpha has no database\n")


def test_what_goes_wrong_is_a_document_too_where_json_was_asked_for(command: Command) -> None:
    ended = command.run("demo", "--json")

    assert ended.returncode == 1
    told = json.loads(ended.stdout)
    assert told["ok"] is False
    assert told["error"] in ended.stderr
