from __future__ import annotations

import pytest

from microkit.db.one_trip import MOST, Held, can_be_held, one_statement

BILL = "INSERT INTO bill (id, amount) VALUES ($1::UUID, $2::NUMERIC(15, 7))"
OUTBOX = "INSERT INTO outbox (id, created_at) VALUES ($1::UUID, clock_timestamp())"


def test_a_row_and_its_events_become_one_statement_with_their_parameters_numbered_through() -> None:
    assert one_statement(BILL, 2, "", 0) == BILL
    assert one_statement("", 0, OUTBOX, 1) == OUTBOX
    assert one_statement("", 0, OUTBOX, 2) == (
        "INSERT INTO outbox (id, created_at) VALUES ($1::UUID, clock_timestamp()), ($2::UUID, clock_timestamp())"
    )
    assert one_statement(BILL, 2, OUTBOX, 2) == (
        "WITH held AS (INSERT INTO bill (id, amount) VALUES ($1::UUID, $2::NUMERIC(15, 7))) "
        "INSERT INTO outbox (id, created_at) VALUES ($3::UUID, clock_timestamp()), ($4::UUID, clock_timestamp())"
    )


def test_a_parameter_that_is_used_twice_stays_one() -> None:
    twice = "INSERT INTO t (a, b) VALUES ($1, $1)"
    assert one_statement(twice, 1, twice, 2) == (
        "WITH held AS (INSERT INTO t (a, b) VALUES ($1, $1)) INSERT INTO t (a, b) VALUES ($2, $2), ($3, $3)"
    )


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO bill (id) VALUES ($1) RETURNING bill.id",
        "INSERT INTO bill (id) VALUES ($1) ON CONFLICT DO NOTHING",
        "INSERT INTO bill (id) VALUES ($1) on conflict (id) do update set id = 1",
        "INSERT INTO bill (id) SELECT $1",
        "INSERT INTO bill (id) VALUES ((SELECT max(id) FROM bill))",
        "INSERT INTO bill (id) VALUES ('costs $1')",
        'INSERT INTO bill ("costs $1") VALUES ($1)',
        "WITH x AS (SELECT 1) INSERT INTO bill (id) VALUES ($1)",
        "INSERT INTO bill DEFAULT VALUES",
        "UPDATE bill SET id = $1",
        "DELETE FROM bill",
        "SELECT 1",
    ],
)
def test_what_is_no_plain_insert_of_values_is_not_held(sql: str) -> None:
    assert not can_be_held(sql)


def test_a_quoted_name_is_no_hindrance() -> None:
    assert can_be_held('INSERT INTO "order" (id, "group") VALUES ($1::UUID, $2::VARCHAR)')


def test_one_row_of_the_service_is_held_and_a_bounded_number_of_events() -> None:
    held = Held()
    assert not held
    assert held.take_row(BILL, (1, 2))
    assert not held.take_row(BILL, (3, 4))
    assert not held.take_events(OUTBOX, [(0,)] * (MOST + 1))
    assert held.take_events(OUTBOX, [(5,), (6,)])
    assert not held.take_events(OUTBOX, [(7,)])
    assert held.as_one() == (one_statement(BILL, 2, OUTBOX, 2), (1, 2, 5, 6))


def test_a_row_that_comes_after_the_events_is_not_held() -> None:
    held = Held()
    assert held.take_events(OUTBOX, [(1,)])
    assert not held.take_row(BILL, (1, 2))


def test_once_released_nothing_is_held_any_more() -> None:
    sent: list[tuple[str, tuple[object, ...]]] = []

    class Cursor:
        def execute(self, sql: str, arguments: tuple[object, ...]) -> None:
            sent.append((sql, arguments))

    class Adapted:
        def cursor(self) -> Cursor:
            return Cursor()

    held = Held()
    held.take_row(BILL, (1, 2))
    held.take_events(OUTBOX, [(3,), (4,)])
    held.release(Adapted())
    assert sent == [(BILL, (1, 2)), (OUTBOX, (3,)), (OUTBOX, (4,))]
    assert not held
    assert not held.take_events(OUTBOX, [(5,)])
    assert not held.take_row(BILL, (1, 2))
