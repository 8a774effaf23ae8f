"""A whole system in a test: real services on free ports, in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from microkit.auth import Issuer
from microkit.context import WorkContext, working
from microkit.contract import Contract
from microkit.errors import MicrokitError
from microkit.instance import Instance
from microkit.message import Event, Message
from microkit.servers.ports import free_ports
from microkit.system import RunningSystem, System
from microkit.testing.events import Heard

C = TypeVar("C", bound=Contract)
E = TypeVar("E", bound=Event)


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
    """A running system and what a test does with it."""

    running: RunningSystem
    issuer: str | None = None

    @property
    def urls(self) -> Mapping[str, str]:
        """Where each service listens."""
        return self.running.urls

    def __getitem__(self, service: str) -> Instance:
        return self.running.instances[service]

    def client(self, contract: type[C]) -> C:
        """The operations of a contract, called over HTTP by the service itself, in its own name.

        A user's token goes along inside ``with as_user(token):``.
        """
        return self.running.instances[contract.contract_service].client(contract)

    def token(self, subject: str, *roles: str) -> str:
        """An access token for a user with these roles, signed by the system's issuer, as a log-in would give it.

        Raises:
            MicrokitError: the system names no issuer, or one that offers no ``Issuer`` to its handlers.
        """
        offered = self.running.instances[self.issuer].parts.resources.get(Issuer) if self.issuer else None
        if not isinstance(offered, Issuer):
            raise MicrokitError(
                f"{self.running.name} has nobody who issues tokens: "
                'System(..., [..., dev_issuer()], issuer="dev-issuer"), from microkit.testing.issuer'
            )
        return offered.sign(subject, roles=roles).value

    async def publish(self, event: Event, *, source: str = "test", message_id: str | None = None) -> Message:
        """Puts an event on the bus as the service ``source`` would; returns it as it went.

        Published again with one ``message_id``, it is the same event, delivered twice.
        """
        message = event.to_message(source, message_id=message_id)
        await self.running.bus.publish([message])
        return message

    @asynccontextmanager
    async def listening(self, event: type[E]) -> AsyncIterator[Heard[E]]:
        """Hears the events of one type that are published while the block runs::

        async with shop.listening(OrderPlaced) as placed:
            order = await orders.place(NewOrder(sku="lamp", pieces=2))
            assert (await placed.next()).order_id == order.id
        """
        consumer = await self.running.bus.subscribe(f"test.{uuid4()}", [event.event_topic])
        try:
            yield Heard(event, consumer)
        finally:
            await consumer.close()


@asynccontextmanager
async def run_system(
    system: System,
    folder: Path,
    *,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    bus: str = "memory://",
    scale: Mapping[str, int] | None = None,
) -> AsyncIterator[SystemUnderTest]:
    """Runs all services of ``system`` on free ports, with their files in ``folder``; stops them at the end.

    ``settings``, by service, win over the environment. ``bus`` may be a broker's URL, such as the fixtures
    ``redis_url`` and ``kafka_url`` give. ``scale`` says of which services there are several instances.
    """
    names = [service.name for service in system.services]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    async with system.running(folder, ports=ports, settings=settings, bus=bus, scale=scale) as running:
        yield SystemUnderTest(running, system.issuer)


@contextmanager
def as_user(token: str) -> Iterator[None]:
    """Calls inside the block are made with this access token, as if a request had brought it."""
    with working(WorkContext(bearer=token)):
        yield
