"""What is asked all the time goes by an index over what is alive: a million finished sagas are no part of it."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from microkit.saga import leases
from tests.contract.saga.trips import Bench

pytestmark = pytest.mark.anyio

_FINISHED = """
    WITH RECURSIVE made(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM made WHERE n < 3000)
    INSERT INTO saga (id, name, version, fingerprint, state, status, direction, attempts, seq, epoch, context,
                      created_at, updated_at)
    SELECT lower(hex(randomblob(16))), 'trip', 1, 'f', '{}', 'completed', 'action', 1, 3, 1, '{}', '2030', '2030'
    FROM made
"""
_ALIVE = ("ix_saga_due", "ix_saga_stuck")


@pytest.mark.parametrize("analyzed", [False, True])
async def test_sqlite_reads_no_finished_saga(bench: Bench, analyzed: bool) -> None:
    if bench.database.dialect != "sqlite":
        pytest.skip("on PostgreSQL it is measured with a million")
    asked: list[tuple[str, Any]] = []

    def told(_: object, __: object, sql: str, parameters: Any, *___: object) -> None:
        asked.append((sql, parameters))

    run, known = bench.database.run, ["f", "g"]
    turns = [leases.Turn("f", 0, 9, "trip", 5), leases.Turn("g", 0, 9, "other")]
    await run(lambda tx: tx.execute(sa.text(_FINISHED)))
    if analyzed:
        await run(lambda tx: tx.execute(sa.text("ANALYZE")))
    sa.event.listen(sa.Engine, "before_cursor_execute", told)
    try:
        await run(lambda tx: leases.claim(tx, owner="me", lease=9.0, turns=turns, limit=9))
        await run(lambda tx: leases.next_due(tx, known=known), read_only=True)
        await run(leases.survey, read_only=True)
        await run(lambda tx: leases.welcome(tx, known=known))
        await run(lambda tx: leases.park_strangers(tx, known=known, overdue=9.0, reason="gone"))
        await run(lambda tx: leases.release(tx, owner="me", unbegun=[]))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", told)

    explained = 0
    async with bench.database.transaction(read_only=True) as tx:
        connection = await tx.session.connection()
        for sql, parameters in asked:
            if "saga" not in sql:
                continue
            plan = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters)
            for step in plan.scalars(3):
                if step.startswith(("SCAN saga", "SEARCH saga")):
                    explained += 1
                    assert any(index in step for index in _ALIVE), (step, sql)
    assert explained >= 7
