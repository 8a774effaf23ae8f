"""How one log line looks: JSON for machines, coloured columns for people."""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, Literal

import orjson
from opentelemetry.trace import Span, get_current_span

from microkit import context
from microkit.redaction import MASK, names_a_secret, redact, redact_text, said
from microkit.telemetry.propagation import span_ids
from microkit.telemetry.recorder import stack_of

Format = Literal["json", "console"]

_OF_THE_LIBRARY: Final = frozenset(
    {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "service", "color_message"}
)
_OF_THE_LINE: Final = frozenset(
    {"time", "level", "logger", "service", "message", "trace_id", "span_id", "request_id", "exception"}
)

_CONTROL: Final = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
} | {10: "\\n", 13: "\\r", 9: "\\t"}
"""Characters that end a line, move the cursor or turn the direction of writing."""

_UNICODE_CONTROL: Final = {code: f"\\u{code:04x}" for code in _CONTROL if code > 127}

_SERVICE_COLOURS: Final = (36, 32, 33, 35, 34, 96, 92, 93, 95, 94)
_LEVEL_COLOURS: Final = {"DEBUG": 2, "INFO": 0, "WARNING": 33, "ERROR": 31, "CRITICAL": 41}
_SERVICE_WIDTH: Final = 12

ACCESS: Final = "access"
_OF_ACCESS: Final = frozenset({"request_id", "trace_id", "span_id"})


@lru_cache(maxsize=16)
def _stamp(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest:03d}Z"


def utc(seconds: float) -> str:
    """``2026-01-31T12:00:00.123Z``. Kept for the lines of the same millisecond."""
    return _stamp(int(seconds * 1000))


def members(record: logging.LogRecord, serving: str) -> dict[str, Any]:
    """What a record says, redacted and bounded, as the members of a JSON line."""
    line: dict[str, Any] = {
        "time": utc(record.created),
        "level": record.levelname.lower(),
        "logger": record.name,
        "service": getattr(record, "service", "") or serving,
        "message": _message(record),
    }
    # An access line is written when the request's own context has been left, and brings its ids itself.
    own = record.__dict__ if record.name == ACCESS else {}
    trace_id, span_id = (own.get("trace_id"), own.get("span_id")) if own else span_ids(get_current_span())
    if trace_id:
        line["trace_id"] = trace_id
        line["span_id"] = span_id
    request_id = own.get("request_id") or context.current().request_id
    if request_id:
        line["request_id"] = redact(request_id)
    for name, value in record.__dict__.items():
        if name not in _OF_THE_LIBRARY and not (own and name in _OF_ACCESS):
            name = str(name)  # noqa: PLW2901  nobody checks what comes in extra=
            line[f"extra.{name}" if name in _OF_THE_LINE else name] = MASK if names_a_secret(name) else redact(value)
    if record.exc_info and record.exc_info[1] is not None:
        line["exception"] = _exception(record.exc_info[1])
    if record.stack_info:
        line["stack"] = redact_text(record.stack_info)
    return line


def _message(record: logging.LogRecord) -> str:
    try:
        return said(record.getMessage())
    except Exception as error:  # noqa: BLE001  a wrong format string must not lose the line
        return f"{said(record.msg)} (its arguments do not fit: {type(error).__name__})"


def _exception(error: BaseException) -> dict[str, str]:
    return {
        "type": type(error).__qualname__,
        "message": said(error),
        "stacktrace": stack_of(error),
    }


def json_line(line: Mapping[str, Any]) -> bytes:
    """One line of JSON. JSON itself escapes line breaks; those that only Unicode counts as such are escaped here."""
    try:
        written = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate, a number beyond 64 bits, an object
        written = orjson.dumps(redact(line), option=orjson.OPT_APPEND_NEWLINE)
    return written if written.isascii() else written.decode().translate(_UNICODE_CONTROL).encode()


def access_json(
    service: str,
    method: str,
    path: str,
    route: str,
    status: int,
    seconds: float,
    span: Span,
    fields: Mapping[str, str | int],
) -> bytes:
    """The JSON line of one served request. What is the same for all requests of a route is written once and kept."""
    trace_id, span_id = span_ids(span)
    begin = (
        f'{{"time":"{utc(time.time())}",{_route_members(service, method, route, status)}'
        f'"duration_ms":{seconds * 1e3:.3f},"trace_id":"{trace_id}","span_id":"{span_id}",'
    )
    return begin.encode() + json_line({"path": path, **fields})[1:]


@lru_cache(maxsize=4096)
def _route_members(service: str, method: str, route: str, status: int) -> str:
    members = {"level": "info", "logger": ACCESS, "service": service, "message": f"{method} {route} {status}"}
    return json_line({**members, "method": method, "route": route, "status": status}).decode()[1:-2] + ","


def console_line(line: Mapping[str, Any], *, colour: bool) -> bytes:
    """Time, level, service and message in columns, the other members behind, a stack trace indented below."""
    level = str(line["level"]).upper()
    service = escape(str(line["service"]))
    columns = f"{str(line['time'])[11:23]} {level:<7} {service:<{_SERVICE_WIDTH}} "
    if colour:
        tint = _SERVICE_COLOURS[zlib.crc32(service.encode()) % len(_SERVICE_COLOURS)]
        columns = (
            f"\x1b[2m{str(line['time'])[11:23]}\x1b[0m \x1b[{_LEVEL_COLOURS.get(level, 0)}m{level:<7}\x1b[0m "
            f"\x1b[{tint}m{service:<{_SERVICE_WIDTH}}\x1b[0m "
        )
    rest = [
        f"{escape(name)}={_value(value)}"
        for name, value in line.items()
        if name not in _OF_THE_LINE and name != "stack"
    ]
    if "trace_id" in line:
        # Short where each request has a line; the console finds a trace by as much of its id.
        rest.append(f"trace={line['trace_id'][:8] if line['logger'] == ACCESS else line['trace_id']}")
    tail = "  ".join(("", *rest)) if rest else ""
    if tail and colour:
        tail = f"\x1b[2m{tail}\x1b[0m"
    below = [line["exception"]["stacktrace"]] if "exception" in line else []
    below += [line["stack"]] if "stack" in line else []
    frames = "".join(f"    | {escape(frame)}\n" for text in below for frame in str(text).splitlines())
    return f"{columns}{escape(str(line['message']))}{tail}\n{frames}".encode("utf-8", "backslashreplace")


def _value(value: Any) -> str:
    return escape(value) if isinstance(value, str) else escape(orjson.dumps(value, default=str).decode())


def escape(text: str) -> str:
    """``text`` on one line: control characters as ``\\n``, ``\\x1b`` …"""
    return text.translate(_CONTROL)
