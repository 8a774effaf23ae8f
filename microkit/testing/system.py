"""A whole system in a test: real services on free ports, in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from microkit.context import WorkContext, working
from microkit.contract import Contract
from microkit.instance import Instance
from microkit.system import RunningSystem, System, free_ports

C = TypeVar("C", bound=Contract)


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
    """A running system and what a test does with it."""

    running: RunningSystem

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


@asynccontextmanager
async def run_system(
    system: System, folder: Path, *, settings: Mapping[str, Mapping[str, object]] | None = None
) -> AsyncIterator[SystemUnderTest]:
    """Runs all services of ``system`` on free ports, with their files in ``folder``; stops them at the end.

    ``settings``, by service, win over the environment.
    """
    names = [service.name for service in system.services]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    async with system.running(folder, ports=ports, settings=settings) as running:
        yield SystemUnderTest(running)


@contextmanager
def as_user(token: str) -> Iterator[None]:
    """Calls inside the block are made with this access token, as if a request had brought it."""
    with working(WorkContext(bearer=token)):
        yield
