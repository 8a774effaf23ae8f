"""The command as a person runs it: a process of its own, in a folder of its own."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from microkit.cli import main

SYSTEM = """
from collections.abc import AsyncIterator
from starlette.responses import JSONResponse, Response
from microkit import ANYONE, Gateway, Route, Service, System
from microkit.console.story import new_trace_id

alpha = Service("alpha", port={alpha})

@alpha.get("/hello", allow=ANYONE)
async def hello() -> Response:
    return JSONResponse({{"greeting": "hello"}})

gateway = Service("gateway", port={gateway})
gateway.mount("/", Gateway([Route("/api/hello", service="alpha", strip_prefix="/api")]), allow=ANYONE)

async def seed(system):
    return {{"ada@example.com": "correct horse"}}

async def story(story):
    story.chapter("A greeting")
    trace_id = new_trace_id()
    answer = await story.call("Somebody says hello", "GET", "/api/hello", trace_id=trace_id)
    story.check("It is answered", answer["greeting"] == "{expected}", answer)
    trace = await story.show_trace(trace_id, complete=lambda found: "gateway" in found["services"])
    story.check("One trace crosses both", trace["services"] == ["gateway", "alpha"], trace["services"])
    story.result["events"] = await story.show_events(trace_id)
    story.result["sagas"] = await story.show_sagas(trace_id)

async def endless_story(story):
    await story.call("Somebody asks for what is not there", "GET", "/api/nothing")
    story.check("never reached", True)

system = System("tiny", services=[gateway, alpha], seed=seed, story=story)
broken_off = System("tiny", services=[gateway, alpha], story=endless_story)
bare = System("bare", services=[alpha])

unsettled = Service("unsettled", port={alpha})

@unsettled.resource
async def thing() -> AsyncIterator[dict]:
    from microkit.errors import ConfigurationError
    raise ConfigurationError("thing_url is missing; an example: http://thing")
    yield {{}}

failing = System("failing", services=[alpha, unsettled])
"""


@dataclass(frozen=True)
class Ended:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


@dataclass
class Process:
    """A running command."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def interrupt(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@dataclass
class Command:
    """Runs ``microkit`` in ``folder``, with a system in ``tiny.py`` whose ports are free."""

    folder: Path
    ports: list[int]

    def write(self, *, expected: str = "hello") -> None:
        gateway, alpha, _ = self.ports
        (self.folder / "tiny.py").write_text(SYSTEM.format(gateway=gateway, alpha=alpha, expected=expected))

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "microkit.cli", *arguments],
            cwd=self.folder,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def here(self, *arguments: str, env: Mapping[str, str] | None = None) -> Ended:
        """The command in this process, which saves a second; what it prints goes nowhere else."""
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
        path = list(sys.path)
        with (
            chdir(self.folder),
            patch.dict(os.environ, env or {}),
            patch.object(sys, "argv", ["microkit", *arguments]),
            patch.object(sys, "stdout", out),
            patch.object(sys, "stderr", err),
            pytest.raises(SystemExit) as ended,
        ):
            main()
        sys.path[:] = path
        code = ended.value.code
        printed = []
        for stream in (out, err):
            stream.flush()
            printed.append(stream.buffer.getvalue().decode())
        return Ended(code if isinstance(code, int) else int(code is not None), *printed)

    @contextmanager
    def up(self, *arguments: str) -> Iterator[tuple[Process, dict[str, Any]]]:
        """``up --json`` and the document it prints; ended with the block."""
        process = subprocess.Popen(
            [sys.executable, "-m", "microkit.cli", "up", "--json", "--console-port", str(self.ports[2]), *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running = Process(process)
        assert process.stdout is not None
        assert process.stderr is not None
        reading = threading.Thread(target=running.errors.extend, args=[process.stderr])
        reading.start()
        try:
            first = process.stdout.readline()
            assert first, "".join(running.errors)
            yield running, json.loads(first)
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            running.lines += process.stdout.readlines()
            process.wait(20)
        finally:
            with ExitStack() as stack:
                stack.callback(process.stdout.close)
                stack.callback(process.stderr.close)
                stack.callback(reading.join)
                stack.callback(process.wait)
                process.kill()
