"""Follows a page of documentation as a reader would: writes its files, runs its commands.

- ```` ```python title="shop/service.py" ```` (or a first line ``# service.py: …``) becomes that file, and is imported.
- ```` ```python ```` without a file is executed by itself.
- ```` ```console ```` lines that begin with ``$`` are run by bash, in order, and must succeed.
- ``<!-- background until "TEXT" -->`` before a console block: its command keeps running; the reader goes on when it has
  printed TEXT.
- ``<!-- prints "TEXT" -->`` after a block: what it printed must contain TEXT.
- ``<!-- not run: REASON -->`` before a block: it is not.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_FENCE = re.compile(r"^```(?P<language>\w+)(?P<options>[^\n]*)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="(?P<file>[^"]+)"')
_FIRST_LINE = re.compile(r"# (?P<file>[\w/]+\.(py|toml)):?\s")
_BEFORE = re.compile(r'<!-- (?P<what>background until|not run)[: ]+"?(?P<text>.*?)"? -->\s*\Z')
_AFTER = re.compile(r'\A\s*<!-- prints "(?P<text>.*?)" -->')


@dataclass(frozen=True)
class Block:
    """One fenced block, with what the comments around it ask for."""

    language: str
    body: str
    line: int
    file: str | None = None
    background_until: str | None = None
    not_run: str | None = None
    prints: list[str] = field(default_factory=list)


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        before = _BEFORE.search(text[: match.start()])
        after, prints = text[match.end() :], []
        while told := _AFTER.match(after):
            prints.append(told["text"])
            after = after[told.end() :]
        title = _TITLE.search(match["options"]) or _FIRST_LINE.match(match["body"])
        what = before["what"] if before else ""
        found.append(
            Block(
                language=match["language"],
                body=match["body"],
                line=text.count("\n", 0, match.start()) + 1,
                file=title["file"] if title else None,
                background_until=before["text"] if before and what == "background until" else None,
                not_run=before["text"] if before and what == "not run" else None,
                prints=prints,
            )
        )
    return found


class Walkthrough:
    """One reader in one folder. Ends every process it started."""

    def __init__(self, page: Path, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._page = page
        self._folder = folder
        scripts = str(Path(sys.executable).parent)
        self._environment = {
            **os.environ,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(folder),
            "NO_COLOR": "1",
            **(environment or {}),
        }
        self._background: list[subprocess.Popen[str]] = []

    def follow(self) -> list[Block]:
        """Does what the page says, from top to bottom; returns the blocks that were carried out."""
        done = []
        try:
            for block in blocks(self._page):
                if block.not_run is None and self._carry_out(block):
                    done.append(block)  # noqa: PERF401  carried out one by one
        finally:
            self._end()
        return done

    def _carry_out(self, block: Block) -> bool:
        if block.file is not None:
            path = self._folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body, encoding="utf-8")
            if path.suffix == ".py":
                module = ".".join(Path(block.file).with_suffix("").parts)
                self._run(block, [sys.executable, "-W", "error", "-c", f"import {module}"])
            return True
        if block.language == "python":
            self._run(block, [sys.executable, "-W", "error", "-c", block.body])
            return True
        if block.language == "console":
            self._console(block)
            return True
        return False

    def _console(self, block: Block) -> None:
        script = "\n".join(line[2:] for line in block.body.splitlines() if line.startswith(("$ ", "> ")))
        assert script, f"{self._where(block)}: a console block without a line that begins with '$ '"
        if block.background_until is not None:
            self._start(block, script, block.background_until)
        else:
            self._run(block, ["bash", "-euo", "pipefail", "-c", script])

    def _run(self, block: Block, command: list[str]) -> None:
        ended = subprocess.run(
            command, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=120, check=False
        )
        printed = ended.stdout + ended.stderr
        assert ended.returncode == 0, f"{self._where(block)} failed:\n{block.body}\n{printed}"
        for text in block.prints:
            assert text in printed, f"{self._where(block)} did not print {text!r}:\n{printed}"

    def _start(self, block: Block, script: str, awaited: str) -> None:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {script}"],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._background.append(process)
        printed: list[str] = []

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                printed.append(line)  # noqa: PERF402  seen line by line, while the process goes on

        threading.Thread(target=read, daemon=True).start()
        until = time.monotonic() + 60
        while awaited not in "".join(printed):
            assert process.poll() is None, f"{self._where(block)} ended:\n{''.join(printed)}"
            assert time.monotonic() < until, f"{self._where(block)} never printed it:\n{''.join(printed)}"
            time.sleep(0.05)

    def _end(self) -> None:
        for process in reversed(self._background):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def _where(self, block: Block) -> str:
        return f"{self._page.name}:{block.line}"
