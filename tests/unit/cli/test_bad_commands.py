"""What people type that is wrong, for every command: a sentence and an exit code, never a stack trace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.command import Command, Ended
from tests.unit.cli.test_commands import COMMANDS

NEEDED = {
    "run": ["alpha"],
    "migrate": ["alpha"],
    "config show": ["alpha"],
    "asyncapi": ["alpha"],
    "dlq show": ["billing.bills/3/17"],
    "bus tail": ["billing.bills"],
    "saga show": ["4711"],
    "saga diagram": ["pay-bill"],
    "saga resume": ["4711"],
    "saga retry-step": ["4711"],
    "saga skip-step": ["4711", "pay"],
    **{f"migrate {name}": ["alpha"] for name in ("up", "down", "status", "sql")},
    "migrate new": ["alpha", "a message"],
    "saga compensate": ["4711"],
    "outbox replay": ["--since", "15m"],
    "gateway render": ["nginx"],
}
"""What a command cannot do without."""

BY_SYSTEM = [
    [*path, *NEEDED.get(" ".join(path), [])]
    for path, command in COMMANDS
    if any(parameter.name == "system" for parameter in command.params)
    and path[0] not in {"demo", "drill"}  # these first look for the system that runs
]


def failed(ended: Ended | subprocess.CompletedProcess[str], *codes: int) -> str:
    """The sentence of a command that failed as it should."""
    code, out, err = (
        (ended.code, ended.out, ended.err)
        if isinstance(ended, Ended)
        else (ended.returncode, ended.stdout, ended.stderr)
    )
    assert "Traceback" not in out + err
    assert code in codes, (code, out, err)
    lines = [line for line in err.splitlines() if line.startswith(("microkit: ", "Error: "))]
    assert len(lines) == 1, err
    return lines[0].partition(": ")[2]


def given(arguments: list[str], system: str) -> list[str]:
    """The system as the command takes it: as an argument or as an option."""
    return [*arguments, system] if arguments[0] == "up" else [*arguments, "--system", system]


BROKEN = {
    "nowhere:system": r"There is no module 'nowhere' \(looked in .+ and on the path\)",
    "tiny:nothing": r"tiny:nothing: 'nothing' is not there; it must be a microkit System",
    "tiny:alpha": r"tiny:alpha: 'alpha' is a Service; it must be a microkit System",
    "tiny": r"'tiny' names no system: write module:variable, like shop\.system:system",
    "raises:system": r"raises cannot be loaded: .+/raises\.py:1: RuntimeError: no luck today",
    "leaves:system": r"leaves cannot be loaded: .+: SystemExit: 3",
    "typo:system": r"typo cannot be loaded: .+/typo\.py:1: invalid syntax",
    "needy:system": r"needy needs the module 'no_such_package', which is not installed",
    "..:system": r"\.\. cannot be loaded: .*",
}


@pytest.fixture
def modules(command: Command) -> Command:
    for name, text in {
        "raises": "raise RuntimeError('no luck\\n  today')",
        "leaves": "raise SystemExit(3)",
        "typo": "def (:",
        "needy": "import no_such_package",
    }.items():
        (command.folder / f"{name}.py").write_text(text + "\n")
    return command


def test_a_system_that_cannot_be_loaded_is_one_sentence_in_every_command(modules: Command) -> None:
    for arguments in BY_SYSTEM:
        said = failed(modules.here(*given(arguments, "raises:system")), 1)
        assert re.fullmatch(BROKEN["raises:system"], said), (arguments, said)


@pytest.mark.parametrize("system", BROKEN)
def test_each_wrong_system_is_named(modules: Command, system: str) -> None:
    assert re.fullmatch(BROKEN[system], failed(modules.here("doctor", "--system", system), 1))


@pytest.mark.parametrize("path", [path for path, _ in COMMANDS], ids=[" ".join(path) for path, _ in COMMANDS])
def test_an_unknown_option_is_named(command: Command, path: tuple[str, ...]) -> None:
    assert failed(command.here(*path, "--no-such-option"), 2) == "No such option: --no-such-option"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["up", "tiny:system", "--scale", "alpha"], "--scale 'alpha' is no service and number; an example: .*"),
        (["up", "tiny:system", "--scale", "alpha=0"], "alpha needs one instance at least, not 0"),
        (["up", "tiny:system", "--scale", "alpha=-1"], "--scale 'alpha=-1' is no service and number; .*"),
        (["up", "tiny:system", "--scale", "alpha=99999999999"], "--scale 'alpha=99999999999' is more than the 100 .*"),
        (["up", "tiny:system", "--scale", "omega=2"], "'omega' cannot be scaled: tiny has no such service, .*"),
        (["up", "tiny:system", "--bus", "carrier-pigeon://x"], "--bus 'carrier-pigeon' is no kind of bus: memory, .*"),
        (["up", "tiny:system", "--database-url", "mysql://x"], "a database for each service is made on PostgreSQL, .*"),
        (["up", "tiny:system", "--folder", "tiny.py"], "The folder tiny.py cannot be written .*: choose another .*"),
        (["up", "tiny:bare", "--seed"], "The system bare has no demo data: leave --seed out"),
        (["run", "omega", "--system", "tiny:system"], "tiny has no service 'omega'; it has: gateway, alpha"),
        (["migrate", "omega", "--system", "tiny:system"], "tiny has no service 'omega'; it has: gateway, alpha"),
        (["doctor", "omega", "--system", "tiny:system"], "tiny has no service 'omega'; it has: gateway, alpha"),
        (["config", "show", "omega", "--system", "tiny:system"], "tiny has no service 'omega'; it has: .*"),
        (["asyncapi", "omega", "--system", "tiny:system"], "tiny has no service 'omega'; it has: .*"),
        (["demo", "tiny:system"], "No system runs in the folder .microkit: start one with .*"),
        (["drill", "tiny:system"], "No system runs in the folder .microkit: start one with .*"),
        (["pool"], "No system runs in the folder .microkit: start one with .*"),
        (["pool", "--url", "nonsense"], "'nonsense(/pool)?' is no URL: write one like http://127.0.0.1:9000"),
        (["saga", "ls", "--system", "tiny:system"], "The system has no sagas and follows no processes"),
        (["saga", "ls", "--database", "nonsense"], "'nonsense' is no database; write .*"),
        (["saga", "ls", "--database", "sqlite:///none.db"], "There is no database 'none.db', and no .*"),
        (["dlq", "ls", "--bus", "carrier-pigeon://x"], "bus_url: carrier-pigeon:// names no bus; write .*"),
        (["dlq", "ls", "--bus", "redis://127.0.0.1:1/0"], "The bus redis://127.0.0.1:1/0 cannot be reached: .*"),
        (["bus", "lag", "--system", "tiny:system"], "tiny has no events: it has neither database nor handlers"),
        (["outbox", "replay", "--since", "soon"], "--since 'soon' is no time; an example: --since 15m, .*"),
        (["events", "check", "none.json", "none.json"], ".*none.json.*"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)  # fmt: skip
def test_a_wrong_value_is_one_sentence(command: Command, arguments: list[str], sentence: str) -> None:
    assert re.fullmatch(sentence, failed(command.here(*arguments), 1, 2))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["up", "tiny:system", "--port-offset", "99999"], "--port-offset"),
        (["up", "tiny:system", "--console-port", "x"], "--console-port"),
        (["drill", "--rate", "nan"], "--rate"),
        (["drill", "--restarts", "0"], "--restarts"),
        (["dlq", "redrive", "--rate", "-1"], "--rate"),
        (["dlq", "ls", "--limit", "0"], "--limit"),
        (["bus", "tail", "x", "--last", "-1"], "--last"),
        (["run"], "SERVICE"),
        (["no-such-command"], "no-such-command"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_a_value_out_of_its_range_names_its_option(command: Command, arguments: list[str], what: str) -> None:
    assert what in failed(command.here(*arguments), 2)


@pytest.mark.parametrize("note", ["", "[]", "7", '{"pid": 99999999999999999999}', "\udcff"])
def test_a_damaged_note_is_as_none(command: Command, note: str) -> None:
    folder = command.folder / ".microkit"
    folder.mkdir()
    (folder / "up.json").write_bytes(note.encode("utf-8", "surrogateescape"))
    assert failed(command.here("demo"), 1).startswith("No system runs in the folder .microkit")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[tool.microkit]\nsystem = 7\n", "Which system\\? Name it .*"),
        ("[tool]\nmicrokit = 7\n", ".*pyproject.toml: \\[tool.microkit\\] is a table; write system = .*"),
        ("[tool", ".*pyproject.toml cannot be read: .*"),
    ],
)
def test_a_wrong_pyproject_is_named(command: Command, text: str, sentence: str) -> None:
    (command.folder / "pyproject.toml").write_text(text)
    assert re.fullmatch(sentence, failed(command.here("doctor"), 1))


def shell(command: Command, line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A line for bash; ``$M`` is the command."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        cwd=command.folder,
        env={**os.environ, "M": f"{sys.executable} -m microkit.cli", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_reader_that_has_gone_ends_the_command_in_silence(command: Command) -> None:
    assert shell(command, "$M config show alpha --system tiny:system | true").stderr == ""


def test_where_nothing_can_be_printed_it_says_so(command: Command) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("here is no /dev/full")
    said = failed(shell(command, "$M config show alpha --system tiny:system --json > /dev/full"), 1)
    assert said == "No space left on device: see that there is room, and that this user may write there"


@pytest.mark.parametrize(
    ("line", "env"),
    [
        ("$M config show alpha --system tiny:system >&-", {}),
        (
            "$M doctor alpha --system tiny:system",
            {"COLUMNS": "10", "NO_COLOR": "1", "TERM": "dumb", "PYTHONIOENCODING": "ascii"},
        ),
    ],
    ids=["stdout is closed", "ten columns of ASCII"],
)
def test_any_terminal_will_do(command: Command, line: str, env: dict[str, str]) -> None:
    done = shell(command, line, **env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
