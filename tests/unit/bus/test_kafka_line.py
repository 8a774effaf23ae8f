"""One client of Kafka's producer: after its end it takes nothing more, and says why."""

from __future__ import annotations

import logging
import threading

import pytest

from microkit.bus.kafka.producer import _Line
from microkit.message import Message

NOWHERE = {"bootstrap.servers": "127.0.0.1:1", "log_level": 0, "message.timeout.ms": 0}


MESSAGE = Message(topic="bills", key="one", value=b"{}")


def test_a_line_that_has_ended_refuses_with_the_reason_that_was_first() -> None:
    line = _Line(NOWHERE, logging.getLogger("kafka"))
    line.retire("fenced by another")
    line.retire("not confirmed within 30 s")
    assert line.ended.wait(60)

    with pytest.raises(ConnectionError, match="fenced by another"):
        line.send(MESSAGE, lambda *_: None)


def test_whatever_a_line_took_is_reported_though_it_is_retired_meanwhile() -> None:
    for _ in range(20):
        taken, reported = taken_until_it_is_retired(_Line(NOWHERE, logging.getLogger("kafka")))
        assert 0 < taken == reported


def taken_until_it_is_retired(line: _Line) -> tuple[int, int]:
    reports: list[object] = []
    taken, begun = 0, threading.Event()

    def end() -> None:
        begun.wait()
        line.retire("over")

    ending = threading.Thread(target=end)
    ending.start()
    with pytest.raises(ConnectionError, match="over"):
        while True:
            line.send(MESSAGE, lambda error, _: reports.append(error))
            taken += 1
            begun.set()
    ending.join()
    assert line.ended.wait(60)
    return taken, len(reports)
