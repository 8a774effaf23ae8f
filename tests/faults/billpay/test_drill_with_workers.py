"""`microkit drill` on a system one of whose services has several workers: restarted in order nobody notices, killed
with them nothing is lost. For a quiet machine::

    MICROKIT_FAULTS=full pytest tests/faults/billpay/test_drill_with_workers.py -n0 -s
"""

from __future__ import annotations

import os

import pytest

from microkit.servers.ports import free_ports
from microkit.testing.folder import short_lived
from tests.faults.billpay.test_real_system import FULL, SERVICES, RealSystem, tell

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not FULL, reason="many processes: the full form")]

TWICE = ("gateway", "user", "payment", "billing")


@pytest.mark.timeout(900)
async def test_a_service_with_workers_is_restarted_and_killed_like_any_other() -> None:
    ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
    environment = {
        **os.environ,
        **{f"{service.upper()}_PORT": str(port) for service, port in ports.items()},
        "LEDGER_CLOSE_INTERVAL": "200ms",
        "PAYMENT_HORIZON_URL": f"http://127.0.0.1:{ports['ledger']}",
        "BILLING_WORKERS": "2",
    }
    with short_lived("mkworkers-") as folder:
        scaled = [argument for service in TWICE for argument in ("--scale", f"{service}=2")]
        real = RealSystem(folder, scaled, environment)
        await real.start()
        try:
            for how in ([], ["--kill"]):
                drilled = await real.command("drill", "--restarts", "9", "--rate", "20", *how)
                tell(drilled)
                assert drilled["ok"], (drilled, real.log())
                assert (drilled["restarts"], drilled["lost"], drilled["events_lost"]) == (9, 0, 0)
            assert "the process was ended by SIGKILL" in (folder / "log").read_text()
        finally:
            await real.end()
