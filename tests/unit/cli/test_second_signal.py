"""A second signal ends ``microkit up`` at once, in both of its forms, whatever is under way."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.error import HTTPError

import pytest

from microkit.servers.ports import free_ports
from tests.announced import announced

FULL = os.environ.get("MICROKIT_FAULTS") == "full"

SYSTEM = """
import asyncio
from pathlib import Path
from microkit import ANYONE, Service, System

alpha = Service("alpha", port={port})

@alpha.get("/endless", allow=ANYONE)
async def endless() -> str:
    Path("begun").touch()
    await asyncio.sleep(600)
    return "never"

system = System("tiny", services=[alpha])
"""


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.02)


def refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def of_folder(folder: Path) -> list[int]:
    """The processes that run in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve(strict=True) == folder.resolve():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.parametrize("by", [signal.SIGINT, *([signal.SIGTERM] if FULL else [])])
@pytest.mark.parametrize(
    "real",
    [False, pytest.param(True, marks=pytest.mark.skipif(not FULL, reason="the full form of the fault tests"))],
)
def test_the_second_signal_ends_all_at_once(tmp_path: Path, by: signal.Signals, real: bool) -> None:
    (port,) = free_ports(1)
    (tmp_path / "tiny.py").write_text(SYSTEM.format(port=port))
    real_servers = ["--real"] if real else []
    patient = {"ALPHA_SHUTDOWN_TIMEOUT": "500s"}
    with announced(tmp_path, "tiny:system", *real_servers, env=patient, cwd=tmp_path) as (process, document):
        url = document["services"][0]["url"]
        broken: list[Exception] = []

        def ask() -> None:
            try:
                urllib.request.urlopen(f"{url}/endless", timeout=600).close()
            except HTTPError as error:
                broken.append(error)
                error.close()
            except OSError as error:
                broken.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        until((tmp_path / "begun").exists)
        process.send_signal(by)
        until(lambda: refused(port))
        assert process.poll() is None
        process.send_signal(by)
        assert process.wait(60) == 130
        asking.join(60)
        assert broken
        until(lambda: of_folder(tmp_path) == [])
