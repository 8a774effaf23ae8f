"""The stream of lines of ``microkit up --real``: what every process says, each line with the name of who said it."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final, TextIO

import orjson

from microkit.telemetry.logs import LineHandler

_OWN_NAME: Final = re.compile(r"\d\d:\d\d:\d\d\.\d{3} ")
"""How a line of a service begins, which names the service; those of a stack trace do not."""


class LogStream:
    """Writes to ``stream``, a line at a time: text, or one JSON document each. ``services`` are the names that lines of
    services carry by themselves; whoever is called otherwise (``billing-2``, a server) is named in front.

    A stream that takes nothing (its disk is full, its reader has gone) costs lines, and no process its life: they are
    counted, and their number is said as soon as it can be.
    """

    def __init__(self, stream: TextIO, services: Collection[str], *, json: bool) -> None:
        self._services = services
        self._json = json
        self._out = LineHandler(stream, "json" if json else "console", colour=False)
        self._lost = 0

    def line(self, name: str, text: str) -> None:
        """One line that was said by the process of this name, or about it."""
        try:
            if self._lost:
                said = f"lines before this one that could not be written: {self._lost}"
                # What stands before it may have been cut.
                self._out.write(b"\n" + self._formed("microkit", said))
                self._lost = 0
            self._out.write(self._formed(name, text))
        except OSError:
            self._lost += 1

    def _formed(self, name: str, text: str) -> bytes:
        named = name in self._services
        if not self._json:
            return f"{text}\n".encode() if named and _OWN_NAME.match(text) else f"{name}: {text}\n".encode()
        if text.startswith('{"') and text.endswith("}"):
            return f"{text}\n".encode() if named else b'{"instance":' + orjson.dumps(name) + f",{text[1:]}\n".encode()
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        document = {"time": now, "level": "info", "logger": "microkit.fleet", "service": name, "message": text}
        return orjson.dumps(document) + b"\n"
