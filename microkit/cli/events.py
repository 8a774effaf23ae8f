"""``microkit events check``."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any

from microkit.cli.printing import plain
from microkit.compatibility import Finding, Mode
from microkit.compatibility import check as compare
from microkit.errors import ConfigurationError


def check(old: str, new: str, *, mode: Mode, accept: Collection[str], json: bool) -> bool:
    """Prints what changed for the worse between two AsyncAPI documents; returns whether all of it is allowed.

    Raises:
        ConfigurationError: a document cannot be read.
    """
    if old == new == "-":
        raise ConfigurationError("Only one of the two documents can come from stdin")
    findings = compare(_read(old), _read(new), mode=mode, accept=accept)
    refused = [finding for finding in findings if finding.breaks]
    if json:
        shown = {"ok": not refused, "mode": mode.value, "findings": [asdict(finding) for finding in findings]}
        sys.stdout.write(json_module.dumps(shown, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(plain(_told(findings, len(refused), mode)))
    return not refused


def _read(name: str) -> Any:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{name} cannot be read: {error}") from None
    try:
        return json_module.loads(text)
    except ValueError:
        return _read_yaml(name, text)


def _read_yaml(name: str, text: str) -> Any:
    import yaml  # noqa: PLC0415  only where it is asked for

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where is not None else ""
        raise ConfigurationError(f"{name} is neither JSON nor YAML{line}") from None


def _told(findings: Sequence[Finding], refused: int, mode: Mode) -> str:
    parts = []
    for finding in findings:
        verdict = "REFUSED" if finding.breaks else "warning"
        field = f" {finding.field}" if finding.field else ""
        lines = [
            f"{verdict}  {finding.event}{field}: {finding.what}",
            f"         at {finding.pointer} of the {finding.document} document",
            _indented("why: ", finding.why),
            _indented("do:  ", finding.remedy),
        ]
        parts.append("\n".join(lines) + "\n\n")
    warned = len(findings) - refused
    end = f"{refused} refused" if refused else "Compatible"
    return "".join(parts) + end + (f", {warned} warned of" if warned else "") + f" (mode {mode.value}).\n"


def _indented(label: str, text: str) -> str:
    return fill(text, 110, initial_indent=f"         {label}", subsequent_indent=" " * 14, break_on_hyphens=False)
