"""One stream of lines for the process, each with its service, trace and request; nothing forged, nothing leaked."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from microkit.context import WorkContext, working
from microkit.telemetry import Telemetry
from microkit.telemetry.logs import LineHandler, access_line, configure, serving

pytestmark = pytest.mark.anyio

SECRET = "hunter2-hunter2"


class Lines(io.StringIO):
    def read_all(self) -> list[dict[str, Any]]:
        text = self.getvalue()
        assert text.endswith("\n") or not text
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def lines() -> Iterator[Lines]:
    stream = Lines()
    undo = configure(stream)
    yield stream
    undo()


@pytest.fixture
def console() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    undo = configure(stream, format="console", colour=False)
    yield stream
    undo()


@contextlib.contextmanager
def telling(logger: logging.Logger, *, stack_info: bool = False) -> Iterator[None]:
    try:
        yield
    except Exception:
        logger.exception("failed", stack_info=stack_info)


def test_a_line_carries_service_trace_request_and_fields(lines: Lines) -> None:
    telemetry = Telemetry("billing")
    with telemetry.span("x") as span, working(WorkContext(request_id="r-1")):
        telemetry.logger.info("bill %s paid", 7, extra={"bill_id": UUID(int=7), "amount": Decimal("1.50"), "n": 2**70})
    (line,) = lines.read_all()
    context = span.get_span_context()
    assert line == {
        "time": line["time"],
        "level": "info",
        "logger": "billing",
        "service": "billing",
        "message": "bill 7 paid",
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "request_id": "r-1",
        "bill_id": "00000000-0000-0000-0000-000000000007",
        "amount": "1.50",
        "n": str(2**70),
    }
    assert datetime.fromisoformat(line["time"]).utcoffset() is not None


def test_two_services_of_one_name_and_two_of_different_ones_do_not_mix(lines: Lines) -> None:
    quiet, loud = Telemetry("billing", log_level="WARNING"), Telemetry("billing", log_level="DEBUG")
    payment = Telemetry("payment")
    quiet.logger.info("hidden")
    loud.logger.debug("seen")
    payment.logger.info("seen")
    assert [(line["service"], line["message"]) for line in lines.read_all()] == [
        *(("billing", "seen"), ("payment", "seen")),
    ]


def test_no_logger_of_a_service_is_known_to_the_process(lines: Lines) -> None:
    telemetry = Telemetry("a-service-like-no-other")
    telemetry.logger.getChild("relay").info("x")
    assert "a-service-like-no-other" not in logging.Logger.manager.loggerDict
    assert logging.getLogger("a-service-like-no-other") is not telemetry.logger
    (line,) = lines.read_all()
    assert (line["logger"], line["service"]) == ("a-service-like-no-other.relay", "a-service-like-no-other")


def test_a_level_that_changes_counts_at_once(lines: Lines) -> None:
    logger = Telemetry("billing").logger
    logger.debug("no")
    logger.setLevel("DEBUG")
    logger.debug("yes")
    logging.disable(logging.CRITICAL)
    try:
        logger.error("no")
    finally:
        logging.disable(logging.NOTSET)
    assert [line["message"] for line in lines.read_all()] == ["yes"]


async def test_a_library_in_a_task_of_a_service_is_named_after_the_service(lines: Lines) -> None:
    async def work(service: str) -> None:
        serving.set(service)
        await asyncio.sleep(0)
        logging.getLogger("some.library").warning("hello from %s", service)

    await asyncio.gather(work("billing"), work("payment"))
    logging.getLogger("some.library").warning("outside")
    seen = {line["message"]: (line["service"], line["logger"]) for line in lines.read_all()}
    assert seen == {
        "hello from billing": ("billing", "some.library"),
        "hello from payment": ("payment", "some.library"),
        "outside": ("", "some.library"),
    }


def test_credentials_are_masked_wherever_they_stand(lines: Lines) -> None:
    logger = Telemetry("billing").logger
    logger.info("calling with Bearer %s", SECRET)
    logger.info("no %s", f"postgresql://u:{SECRET}@db/x")
    logger.info("body", extra={"body": {"user": {"password": SECRET, "cookies": [SECRET]}}, "token": SECRET})
    logger.info("headers", extra={"headers": [("authorization", f"Bearer {SECRET}")], "otp": 123456})
    with telling(logger, stack_info=True):
        raise RuntimeError(f"password={SECRET}")
    text = lines.getvalue()
    assert SECRET not in text
    assert "123456" not in text
    assert len(lines.read_all()) == 5


def test_an_exception_is_told_with_its_stack(lines: Lines) -> None:
    logger = Telemetry("billing").logger
    with telling(logger):
        raise ValueError("broken")
    (line,) = lines.read_all()
    assert line["exception"]["type"] == "ValueError"
    assert line["exception"]["message"] == "broken"
    assert "test_logs.py" in line["exception"]["stacktrace"]


FORGERY = 'harmless\r\n{"level":"error","message":"forged"}\n\x1b[31mred\x1b[0m\u2028\u2029\x85\x00\u202e'


def test_a_line_break_in_what_is_logged_forges_no_line(lines: Lines) -> None:
    logger = Telemetry("billing").logger
    logger.info("user %s", FORGERY, extra={"name_of_user": FORGERY, f"k{FORGERY}": 1})
    access_line("billing", "GET", f"/{FORGERY}", "/{x}", 200, 0.1, fields={"client": FORGERY})
    text = lines.getvalue()
    assert text.count("\n") == 2
    assert "\r" not in text
    assert "\x1b" not in text
    assert [line["level"] for line in lines.read_all()] == ["info", "info"]


def test_a_line_break_forges_no_line_on_the_console(console: io.StringIO) -> None:
    logger = Telemetry("billing").logger
    logger.info("user %s", FORGERY, extra={"name_of_user": FORGERY, f"k{FORGERY}": {"x": FORGERY}})
    access_line("billing", "GET", f"/{FORGERY}", "/{x}", 200, 0.1, fields={"client": FORGERY})
    with telling(logger):
        raise ValueError(FORGERY)
    shown = console.getvalue()
    for character in FORGERY:
        if not character.isprintable() and character != "\n":
            assert character not in shown
    first, second, *rest = shown.splitlines()
    assert "forged" in first
    assert "forged" in second
    assert "failed" in rest[0]
    assert all(line.startswith("    | ") for line in rest[1:])


def test_the_console_shows_columns_and_what_belongs_to_the_line(console: io.StringIO) -> None:
    telemetry = Telemetry("billing")
    with telemetry.span("x"):
        telemetry.logger.warning("bill paid", extra={"bill_id": 7, "who": "ann"})
    line = console.getvalue()
    assert re.match(
        r"\d\d:\d\d:\d\d\.\d{3} WARNING billing      bill paid  bill_id=7  who=ann  trace=[0-9a-f]{32}\n", line
    )


def test_the_console_gives_each_service_a_colour_of_its_own() -> None:
    stream = io.StringIO()
    undo = configure(stream, format="console", colour=True)
    try:
        for service in ("gateway", "billing", "gateway"):
            Telemetry(service).logger.info("x")
    finally:
        undo()
    colours = re.findall(r"\x1b\[(\d+)m(?:gateway|billing)", stream.getvalue())
    assert colours[0] == colours[2] != colours[1]


def test_colour_is_off_where_the_stream_is_no_terminal() -> None:
    stream = io.StringIO()
    undo = configure(stream, format="console")
    Telemetry("billing").logger.info("x")
    undo()
    assert "\x1b" not in stream.getvalue()


def test_a_record_that_does_not_fit_its_format_is_written_nevertheless(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = [handler for handler in logging.root.handlers if isinstance(handler, LineHandler)]
    monkeypatch.setattr(logging.root, "handlers", ours)  # pytest's own fail on such a record
    logger = Telemetry("billing").logger
    logger.info("%d of %s", "many")  # noqa: PLE1206  it is what is tried
    logger.info("surrogate \ud800", extra={"x": "\udfff"})
    logger.info("reserved", extra={"trace_id": "mine", "time": 1, "level": "x", "service": "forged"})
    first, second, third = lines.read_all()
    assert first["message"].startswith("%d of %s")
    assert second["x"] == "\\udfff"
    assert (third["extra.trace_id"], third["service"], third["level"]) == ("mine", "billing", "info")


def test_configuring_twice_writes_each_line_once_and_undoing_restores() -> None:
    before, level = list(logging.root.handlers), logging.root.level
    one, two = Lines(), Lines()
    undo_one = configure(one)
    undo_two = configure(two, level="DEBUG")
    Telemetry("billing").logger.info("x")
    assert (one.getvalue(), len(two.read_all())) == ("", 1)
    undo_two()
    Telemetry("billing").logger.info("x")
    assert (len(one.read_all()), len(two.read_all())) == (1, 1)
    undo_one()
    undo_one()
    assert logging.root.handlers == before
    assert logging.root.level == level


def test_undoing_in_another_order_brings_no_handler_back() -> None:
    before = list(logging.root.handlers)
    undo_one = configure(io.StringIO())
    undo_two = configure(io.StringIO())
    undo_one()
    undo_two()
    assert logging.root.handlers == before


def test_the_level_is_for_libraries_and_a_service_has_its_own() -> None:
    stream = Lines()
    undo = configure(stream, level="ERROR")
    logging.getLogger("some.library").warning("hidden")
    Telemetry("billing").logger.info("seen")
    undo()
    assert [line["message"] for line in stream.read_all()] == ["seen"]


def test_an_access_line_tells_the_request(lines: Lines) -> None:
    telemetry = Telemetry("billing")
    with telemetry.span("x") as span:
        access_line(
            "billing", "GET", "/bills/7", "/bills/{bill_id}", 200, 0.0123456, span, {"request_id": "r", "bytes": 12}
        )
    (line,) = lines.read_all()
    assert line == {
        "time": line["time"],
        "level": "info",
        "logger": "access",
        "service": "billing",
        "message": "GET /bills/{bill_id} 200",
        "method": "GET",
        "path": "/bills/7",
        "route": "/bills/{bill_id}",
        "status": 200,
        "duration_ms": 12.346,
        "trace_id": f"{span.get_span_context().trace_id:032x}",
        "span_id": f"{span.get_span_context().span_id:016x}",
        "request_id": "r",
        "bytes": 12,
    }


@pytest.mark.parametrize("path", ['/"quoted"\\', "/\ud800", "/ü/€", "/\x00", ""])
def test_an_access_line_is_json_whatever_the_path(path: str, lines: Lines) -> None:
    access_line('bil"ling', 'G"ET', path, '/{"}', 200, 0.0)
    (line,) = lines.read_all()
    assert line["path"] == path.encode("utf-8", "backslashreplace").decode()
    assert line["method"] == 'G"ET'


def test_an_access_line_on_the_console_is_short(console: io.StringIO) -> None:
    access_line("billing", "GET", "/bills/7", "/bills/{bill_id}", 200, 0.0123, fields={"client": "::1"})
    assert console.getvalue().endswith("INFO    billing      GET /bills/7 200  client=::1  duration_ms=12.3\n")


def test_an_access_line_on_the_console_leads_to_its_trace(console: io.StringIO) -> None:
    telemetry = Telemetry("billing")
    with telemetry.span("before"):
        pass
    with telemetry.span("request") as span:
        pass
    access_line("billing", "GET", "/bills/7", "/bills/{bill_id}", 200, 0.0123, span)
    line = console.getvalue()
    assert "extra." not in line
    shown = re.search(r"  trace=([0-9a-f]{8})\n\Z", line)
    assert shown is not None
    assert telemetry.ring is not None
    assert [one.name for one in telemetry.ring.trace(shown[1])] == ["request"]


def test_an_access_line_without_configured_logs_is_an_ordinary_record(caplog: pytest.LogCaptureFixture) -> None:
    access_line("billing", "GET", "/bills/7", "/bills/{bill_id}", 200, 0.0)
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("access", "GET /bills/7 200")


def test_lines_reach_a_real_file_at_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w") as stream:
        undo = configure(stream)
        for number in range(100):
            access_line("billing", "GET", f"/{number}", "/{n}", 200, 0.0)
            Telemetry("billing").logger.info("x" * 5000)
        written = path.read_text()  # before the stream is closed
        undo()
    assert [json.loads(line)["service"] for line in written.splitlines()] == ["billing"] * 200


def test_lines_that_a_slow_reader_makes_partial_arrive_whole() -> None:
    """A pipe that does not block takes part of a line: the rest must follow before the next line begins."""
    program = """
import os, sys, threading, time
from microkit.telemetry import Telemetry
from microkit.telemetry.logs import access_line, configure
read, write = os.pipe()
os.set_blocking(write, False)
stream = os.fdopen(write, "w")
configure(stream)
got = []
def reader():
    while block := os.read(read, 1000):
        got.append(block)
reading = threading.Thread(target=reader)
reading.start()
def writer(start):
    logger = Telemetry("billing").logger
    for number in range(start, start + 100):
        logger.info("y" * 8000, extra={"number": number})
        access_line("billing", "GET", "/" + "z" * 8000, "/", number, 0.0)
writers = [threading.Thread(target=writer, args=(start,)) for start in (0, 100)]
for thread in writers:
    thread.start()
for thread in writers:
    thread.join()
stream.close()
reading.join()
sys.stdout.write(b"".join(got).decode())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(line["number"] for line in lines if "number" in line) == list(range(200))
    assert sorted(line["status"] for line in lines if "status" in line) == list(range(200))
    assert done.stderr == ""


def test_a_stream_that_takes_nothing_any_more_does_not_hold_the_service_up_for_ever() -> None:
    program = """
import os, sys
from microkit.telemetry import Telemetry
from microkit.telemetry.logs import configure
read, write = os.pipe()
os.set_blocking(write, False)
configure(os.fdopen(write, "w"))
for _ in range(9):
    Telemetry("billing").logger.info("y" * 8000)
print("went on")
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "BlockingIOError" in done.stderr


def test_a_reader_that_has_gone_does_not_stop_the_service(capfd: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    stream = os.fdopen(write, "w")
    os.close(read)
    undo = configure(stream)
    Telemetry("billing").logger.info("x")
    access_line("billing", "GET", "/", "/", 200, 0.0)
    undo()
    with contextlib.suppress(BrokenPipeError):
        stream.close()
    assert capfd.readouterr().err == ""


def test_a_stream_that_fails_does_not_stop_the_service(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    undo = configure(stream)
    stream.close()
    Telemetry("billing").logger.info("x")
    access_line("billing", "GET", "/", "/", 200, 0.0)
    undo()
    assert "I/O operation on closed file" in capsys.readouterr().err


def test_handlers_of_others_stay() -> None:
    other = logging.NullHandler()
    logging.root.addHandler(other)
    try:
        undo = configure(io.StringIO())
        assert sum(isinstance(handler, LineHandler) for handler in logging.root.handlers) == 1
        undo()
        assert other in logging.root.handlers
    finally:
        logging.root.removeHandler(other)


def test_an_access_line_keeps_the_request_s_own_id(console: io.StringIO) -> None:
    access_line("billing", "GET", "/bills", "/bills", 200, 0.1, fields={"request_id": "r1", "client": "127.0.0.1"})

    assert "extra." not in console.getvalue()
    assert "client=127.0.0.1" in console.getvalue()
