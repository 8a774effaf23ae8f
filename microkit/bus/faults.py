"""A bus in memory that fails on purpose, at random from a seed: ``memory://?faults=drop_ack:0.1,crash:0.02&seed=7``.

What a service must survive from every broker happens often here: acknowledgements that are lost, messages that come
twice, keys that overtake each other, a broker that stands still, members that die with messages in their hands. Order
within a key holds, as on every bus that promises it: the first coming of each message is in its order.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Final, Self
from urllib.parse import parse_qsl

from microkit.bus.memory import MemoryBus, MemoryConsumer
from microkit.bus.port import Consumer, Delivery
from microkit.errors import ConfigurationError

_log = logging.getLogger(__name__)

STALL_SECONDS: Final = 0.2
_EXAMPLE: Final = "memory://?faults=drop_ack:0.1,duplicate:0.1,reorder:0.5,stall:0.05,crash:0.02&seed=7"


@dataclass(frozen=True, slots=True)
class Faults:
    """How probable each fault is, from 0 to 1.

    ``drop_ack``: that an acknowledgement of a message is lost, and it comes again. ``duplicate``: that a message comes
    twice. ``reorder``: that a fetch mixes the keys it brings. ``stall``: that a fetch stands still for up to 0.2 s.
    ``crash``: that a fetch finds its member dead and all that it had in flight with others.

    Raises:
        ConfigurationError: one is no probability.
    """

    drop_ack: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    stall: float = 0.0
    crash: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not 0 <= getattr(self, each.name) <= 1:
                raise ConfigurationError(f"bus_url: {each.name} is a probability from 0 to 1; an example: {_EXAMPLE}")

    @classmethod
    def of(cls, text: str) -> Self:
        """Reads ``drop_ack:0.1,crash:0.02``.

        Raises:
            ConfigurationError: it cannot be read.
        """
        try:
            pairs = [item.split(":") for item in text.split(",")]
            return cls(**{name: float(value) for name, value in pairs})
        except (TypeError, ValueError):
            raise ConfigurationError(
                f"bus_url: faults={text!r} is not understood; they are {', '.join(each.name for each in fields(cls))}; "
                f"an example: {_EXAMPLE}"
            ) from None


def from_url(url: str) -> MemoryBus:
    """The bus that a ``memory://`` URL means.

    Raises:
        ConfigurationError: it cannot be read.
    """
    query = dict(parse_qsl(url.partition("?")[2], keep_blank_values=True))
    if unknown := sorted(query.keys() - {"faults", "seed"}):
        raise ConfigurationError(f"bus_url: memory:// knows no {unknown[0]!r}; an example: {_EXAMPLE}")
    if "faults" not in query:
        return MemoryBus()
    seed = query.get("seed")
    if seed is not None and not seed.isdecimal():
        raise ConfigurationError(f"bus_url: seed is a number; an example: {_EXAMPLE}")
    return FaultyMemoryBus(Faults.of(query["faults"]), seed=None if seed is None else int(seed))


class FaultyMemoryBus(MemoryBus):
    """A :class:`~microkit.bus.memory.MemoryBus` whose consumers meet :class:`Faults`. ``seed`` repeats a run, as far as
    the event loop does the same in it; it is logged, and kept in ``seed``. ``met`` counts what happened."""

    def __init__(self, faults: Faults, *, seed: int | None = None) -> None:
        super().__init__()
        self.faults = faults
        self.seed = random.randrange(2**32) if seed is None else seed  # noqa: S311  chance, no secret
        self.random = random.Random(self.seed)  # noqa: S311
        self.met = {each.name: 0 for each in fields(faults)}
        _log.warning("the memory bus fails on purpose: %s, seed=%d", faults, self.seed)

    def happens(self, fault: str) -> bool:
        """Whether a fault happens now."""
        chosen: bool = self.random.random() < getattr(self.faults, fault)
        self.met[fault] += chosen
        return chosen

    async def subscribe(self, group: str, topics: Sequence[str]) -> Consumer:  # type: ignore[override]  # it holds one
        return _FaultyConsumer(self, group, topics, await super().subscribe(group, topics))

    async def rejoin(self, group: str, topics: Sequence[str]) -> MemoryConsumer:
        """A new member without faults of its own."""
        return await super().subscribe(group, topics)


class _FaultyConsumer:
    def __init__(self, bus: FaultyMemoryBus, group: str, topics: Sequence[str], member: MemoryConsumer) -> None:
        self._bus = bus
        self._group = group
        self._topics = topics
        self._member = member

    async def fetch(self, most: int, wait: float) -> Sequence[Delivery]:
        bus = self._bus
        if bus.happens("crash"):
            await self._member.close()
            self._member = await bus.rejoin(self._group, self._topics)
            raise ConnectionError("the member died, on purpose")
        if bus.happens("stall"):
            await asyncio.sleep(bus.random.uniform(0, STALL_SECONDS))
        fetched = list(await self._member.fetch(max(1, most // 2) if bus.faults.duplicate else most, wait))
        twice = [delivery for delivery in fetched if bus.happens("duplicate")][: most - len(fetched)]
        if bus.happens("reorder"):
            fetched = self._mixed(fetched)
        return fetched + twice

    def _mixed(self, deliveries: list[Delivery]) -> list[Delivery]:
        """The same, each key's in their order, the keys in any."""
        lanes: dict[tuple[str, str], list[Delivery]] = {}
        for delivery in deliveries:
            lanes.setdefault((delivery.message.topic, delivery.message.key), []).append(delivery)
        names = [name for name, lane in lanes.items() for _ in lane]
        self._bus.random.shuffle(names)
        for lane in lanes.values():
            lane.reverse()
        return [lanes[name].pop() for name in names]

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        kept: list[Delivery] = []
        dropped: list[Delivery] = []
        for delivery in deliveries:
            (dropped if self._bus.happens("drop_ack") else kept).append(delivery)
        await self._member.ack(kept)
        await self._member.release(dropped)

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        await self._member.release(deliveries)

    async def close(self) -> None:
        await self._member.close()
