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
import select
import sys
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Final, TextIO

from opentelemetry.trace import INVALID_SPAN, Span

from microkit.telemetry.lines import ACCESS, Format, access_json, console_line, json_line, members
from microkit.telemetry.propagation import span_ids

serving: ContextVar[str] = ContextVar("microkit_serving", default="")
"""The service that the current task works for; it names the lines of loggers that belong to no service."""

LONGEST_BLOCK: Final = 1.0
"""Seconds."""

_NOTHING: Final[Mapping[str, str]] = {}


class ServiceLogger(logging.Logger):
    """A logger of one service: ``telemetry.logger.info("bill paid", extra={"bill_id": bill_id})``.

    It hands its records to the root logger's handlers and is in no registry: two services, or two instances of one,
    have a level each.
    """

    def __init__(self, service: str, level: str | int = "INFO") -> None:
        super().__init__(service, level)
        self.parent = logging.root
        self.service = service
        self.addFilter(self._stamp)

    def _stamp(self, record: logging.LogRecord) -> bool:
        record.service = self.service
        return True

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  the library's name
        # The library keeps the answer, and forgets it when a level changes, only for the loggers in its tree.
        return level >= self.level and level > self.manager.disable and not self.disabled

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
        self.undone = False
        self.colour = colour
        self._buffer = stream.buffer if isinstance(stream, io.TextIOWrapper) else None
        raw = getattr(self._buffer, "raw", None)
        self._raw = raw if isinstance(raw, io.FileIO) else None
        self._lock = self.lock or threading.RLock()  # the handler's own, which the library renews after a fork

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = members(record, serving.get())
            self.write(json_line(line) if self.form == "json" else console_line(line, colour=self.colour))
        except BrokenPipeError:
            pass  # nobody reads any more, so there is nobody to tell
        except Exception:  # noqa: BLE001  the library's way: a failing log must not fail the work
            self.handleError(record)

    def write(self, line: bytes) -> None:
        """Writes one whole line: in one system call where there is a file below, so that lines of several processes do
        not mix.

        Raises:
            BlockingIOError: a stream that does not block has taken nothing for a second.
        """
        with self._lock:
            if self._raw is not None:
                written = self._raw.write(line)
                if written != len(line):
                    self._write_rest(self._raw, line, written)
            elif self._buffer is not None:
                self._buffer.write(line)
                self._buffer.flush()
            else:
                self.stream.write(line.decode())
                self.stream.flush()

    def _write_rest(self, raw: io.FileIO, line: bytes, written: int | None) -> None:
        while written != len(line):  # a pipe that does not block, as some parents make standard output
            line = line[written or 0 :]
            if not written and not select.select([], [raw], [], LONGEST_BLOCK)[1]:
                raise BlockingIOError
            written = raw.write(line)


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
        if handler in root.handlers:
            root.removeHandler(handler)
            for old in replaced:
                if not old.undone:
                    root.addHandler(old)
            root.setLevel(level_before)
        handler.undone = True

    return undo


def access_line(
    service: str,
    method: str,
    path: str,
    route: str,
    status: int,
    seconds: float,
    span: Span = INVALID_SPAN,
    fields: Mapping[str, str | int] = _NOTHING,
) -> None:
    """Writes the line of one served request straight to the stream, past the machinery of records. Never raises.

    ``path`` comes without its query, which may hold credentials; ``route`` is the template that matched. ``fields`` are
    further members, trusted not to be secret: ``request_id``, ``client``, ``user``, ``bytes``. On the console, and
    where no :func:`configure` has been called, it is an ordinary record of the logger ``access``.
    """
    for handler in logging.root.handlers:
        if type(handler) is LineHandler and handler.form == "json":
            try:
                handler.write(access_json(service, method, path, route, status, seconds, span, fields))
            except BrokenPipeError:
                pass
            except Exception:  # noqa: BLE001  the request has been served; that its line failed must not undo that
                handler.handleError(logging.makeLogRecord({"name": ACCESS, "msg": "a line of the access log failed"}))
            return
    trace_id, span_id = span_ids(span)
    record = logging.makeLogRecord(
        {
            **fields,
            "name": ACCESS,
            "levelno": logging.INFO,
            "levelname": "INFO",
            "msg": "%s %s %s",
            "args": (method, path, status),
            "service": service,
            "duration_ms": round(seconds * 1e3, 3),
            "trace_id": trace_id,
            "span_id": span_id,
        }
    )
    logging.root.handle(record)
