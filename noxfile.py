"""One command for each thing: ``nox -s lint types arch tests slow kills docs bench``; bare ``nox`` before a commit."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nox

PYTHONS = sorted({"3.11", "3.12", "3.13", f"3.{sys.version_info.minor}"})  # those that are missing are skipped
WORKERS = ["-n", "4", "--dist", "loadgroup", "--timeout", "600"]  # more than cores: much of the time is waiting
AGAIN = ["--reruns", "1", "--rerun-show-tracebacks"] if os.environ.get("MICROKIT_SECOND_CHANCE") else []  # decision 40
SOURCES = ["microkit", "reference", "tests", "benchmarks", "noxfile.py"]
SCANNER = [
    *("kingfisher", "scan", "--rules-path", ".kingfisher/rules.yml", "--redact", "--no-validate", "--no-update-check"),
    *(f"--exclude={name}" for name in (".venv", ".nox", ".*_cache", ".hypothesis", ".git/worktrees", "site")),
]

nox.needs_version = ">=2026.4"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "arch", "tests", "slow", "kills", "template", "docs"]


def install(session: nox.Session, *requirements: str) -> None:
    """The pinned requirements, and microkit itself from the working tree."""
    for requirement in requirements:
        session.install("--require-hashes", "-r", f"requirements/{requirement}.txt")
    session.install("--no-deps", "-e", ".")


@nox.session
def lint(session: nox.Session) -> None:
    """Formatting and lint rules. ``nox -s lint -- --fix`` mends what can be mended."""
    install(session, "dev")
    fix = "--fix" in session.posargs
    session.run("ruff", "format", *([] if fix else ["--check"]), *SOURCES)
    session.run("ruff", "check", *(["--fix"] if fix else []), *SOURCES)


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict, over everything; pyright and ty read the public API as a user's editor does."""
    install(session, "bench")  # the development tools, and the peers that benchmarks import
    session.run("mypy")
    session.run("pytest", "-q", "tests/typing", *session.posargs)


@nox.session
def arch(session: nox.Session) -> None:
    """The floors of the house: who may import whom."""
    install(session, "dev")
    session.run("lint-imports")
    session.run("pytest", "-q", "tests/architecture", *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """The suite, on SQLite and on PostgreSQL. What has a session of its own is left to it."""
    install(session, "dev")
    apart = [f"--ignore=tests/{part}" for part in ("typing", "template", "faults", "docs/test_pages.py")]
    session.run("pytest", *WORKERS, *AGAIN, "-m", "not slow", *apart, *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that take ten seconds or more each: schemathesis, members that join and leave under load."""
    install(session, "dev")
    session.run("pytest", *WORKERS, *AGAIN, "-m", "slow", "tests/contract", "tests/reference", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Branch coverage by what runs in the test's own process. A session of its own: measuring costs twice the tests."""
    install(session, "dev")
    session.run(
        "pytest", *WORKERS, "--cov", "--cov-report=term:skip-covered", "--cov-report=xml",
        *(session.posargs or ["tests/unit", "tests/contract", "reference"]),
    )  # fmt: skip


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the documentation, where a broken link is an error, and does what every page says, block by block.

    ``nox -s docs -- serve`` shows it while one writes.
    """
    install(session, "dev")
    session.run("mkdocs", *(session.posargs or ["build", "--strict"]))
    if not session.posargs:
        session.run("pytest", *WORKERS, *AGAIN, "tests/docs/test_pages.py")


@nox.session
def template(session: nox.Session) -> None:
    """Bakes the service template, and runs the tests, linter and type checker of what came out."""
    install(session, "dev")
    session.run("pytest", "-q", *AGAIN, "tests/template", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """The tests that kill real processes, in their full form: hours. ``kills`` is the short one."""
    install(session, "dev")
    session.run("pytest", "tests/faults", *session.posargs, env={"MICROKIT_FAULTS": "full"})


@nox.session
def kills(session: nox.Session) -> None:
    """The tests that kill real processes, in their short form: minutes, and a part of CI."""
    install(session, "dev")
    session.run("pytest", *WORKERS, "tests/faults", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """What schemathesis makes of every service's OpenAPI document, at length, with a seed of the day."""
    install(session, "dev")
    session.run("pytest", "tests/reference/billpay/test_described.py", *session.posargs, env={"MICROKIT_FUZZ": "full"})


@nox.session
def secrets(session: nox.Session) -> None:
    """Looks for keys and tokens in the working tree. ``nox -s secrets -- --git-history full``: in every commit, too."""
    session.install("--require-hashes", "-r", "requirements/security.txt")
    session.run(*SCANNER, ".", *(session.posargs or ["--git-history", "none"]))


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of what the requirement files pin. It fails, and says so, where no service can be asked."""
    session.install("--require-hashes", "-r", "requirements/security.txt")
    found = []
    for name in ("run", "dev", "bench", "security"):
        report = Path(session.create_tmp()) / f"{name}.json"
        report.unlink(missing_ok=True)
        session.run(
            "pip-audit", "--strict", "--require-hashes", "--disable-pip", "--progress-spinner", "off",
            "--requirement", f"requirements/{name}.txt", "--format", "json", "--output", str(report),
            *session.posargs, silent=True, success_codes=[0, 1],
        )  # fmt: skip
        if not report.exists():  # --strict: what could not be asked about is no clean bill of health
            session.error(
                "No vulnerability service answered for every package, so nothing is known about any of them. Run it "
                "where it can be reached, or ask another: nox -s audit -- --vulnerability-service osv"
            )
        packages = json.loads(report.read_text())["dependencies"]
        found += [f"{one['name']} {one['version']}: {vuln['id']}" for one in packages for vuln in one.get("vulns", ())]
        session.log(f"requirements/{name}.txt: {len(packages)} packages asked about")
    if found:
        session.error("Known vulnerabilities:\n" + "\n".join(sorted(set(found))))


@nox.session
def stress(session: nox.Session) -> None:
    """The conformance suite of the buses ten times over, on every adapter."""
    install(session, "dev")
    session.run("pytest", "-n", "2", "--timeout", "600", "tests/contract/bus", "--bus-stress", "10", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Every benchmark, each with its peer beside it, as a table."""
    install(session, "dev", "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Pins the requirement files anew, with hashes and without addresses."""
    session.install("uv")
    for name, options in {
        "run": ["--extra", "otlp", "--group", "reference"],
        "dev": ["--all-extras", "--group", "reference", "--group", "dev"],
        "bench": ["--all-extras", "--group", "reference", "--group", "dev", "--group", "bench"],
        "security": [],
    }.items():
        source = ["pyproject.toml"] if options else ["--group", name]  # a group alone, without the project
        session.run(
            "uv", "pip", "compile", *source, *options, "--universal", "--generate-hashes",
            "--python-version", "3.11", "--no-header", "--no-emit-index-url", "--no-annotate", "--quiet",
            *session.posargs, "--output-file", f"requirements/{name}.txt",
        )  # fmt: skip
