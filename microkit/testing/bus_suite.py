"""The conformance suite of the bus port. Every adapter passes it, yours too::

    class TestCarrierPigeon(BusSuite):
        promises = Promises(persistent=True, ordered=True, groups=True, redelivers=True, history=True)

        async def connect(self) -> Bus:
            return CarrierPigeonBus("pigeon://loft")

Each ``connect()`` gives a new connection, not started, to the same broker. What an adapter does not promise is tested
where it has an opposite, and skipped with the reason where it has none. Topics and groups have new names in every test.
A scenario that your broker cannot show goes into ``excused`` with its reason, which is printed. With a ``url`` that
``microkit.bus.connect`` takes, other processes join too. ``SCALE`` (1) multiplies the number of messages in the tests
under load; ``JOINING`` is how long a member may need to get its share, on a bus that deals out partitions.
"""

import pytest

from microkit.testing.bus_acknowledging import AcknowledgingScenarios
from microkit.testing.bus_delivery import DeliveryScenarios
from microkit.testing.bus_load import LoadScenarios
from microkit.testing.bus_looking import LookingScenarios
from microkit.testing.bus_scenarios import BusScenarios, needs
from microkit.testing.bus_traffic import (
    by_id,
    end,
    ids,
    new_name,
    number_of,
    numbered,
    numbers,
    receive,
    until,
    working,
)

__all__ = [
    "BusScenarios",
    "BusSuite",
    "by_id",
    "end",
    "ids",
    "needs",
    "new_name",
    "number_of",
    "numbered",
    "numbers",
    "receive",
    "until",
    "working",
]


class BusSuite(DeliveryScenarios, AcknowledgingScenarios, LoadScenarios, LookingScenarios):
    """Subclass it, name what the adapter promises, and say how to connect."""

    pytestmark = pytest.mark.anyio
