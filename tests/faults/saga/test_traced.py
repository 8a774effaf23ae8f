"""The trace of a saga spans the whole of it, whichever processes it ran in."""

from __future__ import annotations

import json
import signal

from tests.faults.programs import run


def test_one_trace_goes_through_a_saga_whose_process_was_killed(database_url: str) -> None:
    done = run("saga.traced", database_url, seconds=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["codes"] == [0, -signal.SIGKILL, 0], done.stderr
    begun, *attempts, spans = found["entries"]

    assert [(each["step"], each["attempt"]) for each in attempts] == [("seat", 1), ("pay", 1), ("pay", 2), ("tell", 1)]
    assert len({each["process"] for each in attempts}) == 2
    assert {each["trace_id"] for each in attempts} == {begun["begun_in"]}
    told = {(each["trace_id"], each["parent_id"]) for each in spans["spans"]}
    assert told == {(begun["begun_in"], begun["span"])}, "each attempt is a child of the request that began the saga"
    assert len(spans["spans"]) == 2
