"""Logs: the standard library's, set up in one place for the whole process.

A process has one stream of lines; what is per service is the :class:`ServiceLogger`, which belongs to a service's
telemetry and is not in logging's global tree of names. Every line carries the service, the trace and the request;
``extra=`` fields become members of the line. Credentials are masked (:mod:`microkit.redaction`) and control characters
escaped, so that nobody can forge a line.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Final, TextIO

from opentelemetry.trace import Span

from microkit.telemetry.lines import Format, console_line, json_line, members, utc

serving: ContextVar[str] = ContextVar("microkit_serving", default="")
"""The service that the current task works for; it names the lines of loggers that belong to no service."""

ACCESS: Final = "access"
_NOTHING: Final[Mapping[str, str]] = {}


class ServiceLogger(logging.Logger):
    """A logger of one service: ``telemetry.logger.info("bill paid", extra={"bill_id": bill_id})``.

    It hands its records to the root logger's handlers and is in no registry: two services, or two instances of one,
    have a level each.
    """

    def __init__(self, service: str, level: str | int = "INFO") -> None:
        super().__init__(service, level)
        self.parent = logging.getLogger()
        self.service = service
        self.addFilter(self._stamp)

    def _stamp(self, record: logging.LogRecord) -> bool:
        record.service = self.service
        return True

    def setLevel(self, level: str | int) -> None:  # noqa: N802  the library's name
        super().setLevel(level)
        self._cache: dict[int, bool] = {}  # the library clears the caches of the loggers in its tree, and this is not

    def getChild(self, suffix: str) -> ServiceLogger:  # noqa: N802  the library's name
        """A logger of the same service and level with a longer name: ``billing.outbox``."""
        child = ServiceLogger(self.service, self.level)
        child.name = f"{self.name}.{suffix}"
        return child


class LineHandler(logging.Handler):
    """Writes records to one stream, a line each, flushed each. Writing blocks where the stream does."""

    def __init__(self, stream: TextIO, form: Format, *, colour: bool) -> None:
        super().__init__()
        self.stream = stream
        self.form: Format = form
        self.colour = colour
        self._bytes = stream.buffer if isinstance(stream, io.TextIOWrapper) else None

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = members(record, serving.get())
            self.write(json_line(line) if self.form == "json" else console_line(line, colour=self.colour))
        except BrokenPipeError:
            pass  # nobody reads any more, so there is nobody to tell
        except Exception:  # noqa: BLE001  the library's way: a failing log must not fail the work
            self.handleError(record)

    def write(self, line: bytes) -> None:
        """Writes one whole line."""
        if self._bytes is not None:
            self._bytes.write(line)
            self._bytes.flush()
        else:
            self.stream.write(line.decode())
            self.stream.flush()

    def access(self, line: dict[str, object]) -> None:
        """Writes an access line; never raises."""
        try:
            if self.form == "json":
                self.write(json_line(line))
            else:
                self.write(console_line(line, colour=self.colour))
        except BrokenPipeError:
            pass
        except Exception:  # noqa: BLE001  a request was served; that its line failed is told, and no more
            self.handleError(logging.makeLogRecord({"name": ACCESS, "msg": "access line failed"}))


def configure(
    stream: TextIO | None = None,
    *,
    format: Format = "json",  # noqa: A002  the word of the setting
    level: str = "INFO",
    colour: bool | None = None,
) -> Callable[[], None]:
    """Sends all logs of the process to ``stream`` (standard output by default); returns what undoes it.

    There is one handler of ours at the root: called again, it takes the place of the one before, and undoing brings
    that back. ``level`` is for loggers that belong to no service; a service's logger has its own. ``colour`` is on
    where the stream is a terminal and ``NO_COLOR`` is not set.
    """
    stream = stream if stream is not None else sys.stdout
    if colour is None:
        colour = stream.isatty() and not os.environ.get("NO_COLOR")
    root = logging.getLogger()
    level_before = root.level
    replaced = [handler for handler in root.handlers if isinstance(handler, LineHandler)]
    handler = LineHandler(stream, format, colour=colour)
    for old in replaced:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)

    def undo() -> None:
        if handler not in root.handlers:
            return
        root.removeHandler(handler)
        for old in replaced:
            root.addHandler(old)
        root.setLevel(level_before)

    return undo


def access_line(
    service: str,
    method: str,
    path: str,
    route: str,
    status: int,
    seconds: float,
    span: Span | None = None,
    fields: Mapping[str, str | int] = _NOTHING,
) -> None:
    """Writes the line of one served request straight to the stream, past the machinery of records.

    ``path`` comes without its query, which may hold credentials; ``route`` is the template that matched. ``fields`` are
    further members, trusted not to be secret: ``request_id``, ``client``, ``user``, ``bytes``. Where no
    :func:`configure` has been called it becomes an ordinary record of the logger ``access``.
    """
    line: dict[str, object] = {
        "time": utc(time.time()),
        "level": "info",
        "logger": ACCESS,
        "service": service,
        "message": f"{method} {path} {status}",
        "method": method,
        "path": path,
        "route": route,
        "status": status,
        "duration_ms": round(seconds * 1000, 3),
    }
    if span is not None:
        context = span.get_span_context()
        line["trace_id"] = f"{context.trace_id:032x}"
        line["span_id"] = f"{context.span_id:016x}"
    if fields:
        line.update(fields)
    written = False
    for handler in logging.root.handlers:
        if type(handler) is LineHandler:
            handler.access(line)
            written = True
    if not written:
        rest = {name: value for name, value in line.items() if name not in {"time", "level", "logger", "message"}}
        logging.getLogger(ACCESS).info("%s %s %s", method, path, status, extra=rest)
