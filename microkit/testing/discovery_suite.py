"""The conformance suite of the discovery port. Every adapter passes it, yours too::

    class TestPhoneBook(DiscoverySuite):
        promises = DiscoveryPromises(registers=True, remote=True, describes=True)

        async def open(self, *, max_staleness: float) -> Discovery:
            return PhoneBook("phonebook://hall", max_staleness=max_staleness)

Each ``open()`` gives a new connection to the same registry, on behalf of another process. ``announce`` and ``withdraw``
change who is known, by registering or, where nobody registers, by writing the registry. What an adapter does not
promise is skipped with the reason. One that is ``remote`` passes ``microkit.testing.discovery_faults`` as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

import pytest

from microkit.discovery.port import Discovery, Endpoint, Registrar
from microkit.errors import Unavailable

PATIENCE = 30.0
"""Seconds until a change that has not been seen is lost."""

Scenario = TypeVar("Scenario", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class DiscoveryPromises:
    """What an adapter promises beside the port.

    ``changes``: who is known can change while it runs; ``registers``: it is a registrar; ``remote``: the registry is
    apart and may be away, what was known is then kept; ``describes``: zone, tags and weight arrive; ``forgets_dead``:
    an instance that is gone without deregistering is found no more.
    """

    changes: bool = True
    registers: bool = False
    remote: bool = False
    describes: bool = False
    forgets_dead: bool = False


def needs(*promises: str) -> Callable[[Scenario], Scenario]:
    """Marks a scenario that only an adapter with these promises can show."""

    def mark(scenario: Scenario) -> Scenario:
        scenario.needs = promises  # type: ignore[attr-defined]  # functions take attributes
        return scenario

    return mark


class DiscoveryScenarios:
    """What the suites have in common."""

    promises: ClassVar[DiscoveryPromises]

    @pytest.fixture(autouse=True)
    def _skip(self, request: pytest.FixtureRequest) -> None:
        for need in getattr(getattr(type(self), request.node.originalname), "needs", ()):
            if not getattr(self.promises, need):
                pytest.skip(f"this adapter does not promise {need!r}")

    async def open(self, *, max_staleness: float) -> Discovery:
        """A new connection to the registry."""
        raise NotImplementedError

    async def announce(self, service: str, endpoint: Endpoint) -> None:
        """Makes an instance known, at once."""
        raise NotImplementedError

    async def withdraw(self, service: str, endpoint: Endpoint) -> None:
        """Takes an instance out, at once."""
        raise NotImplementedError

    @asynccontextmanager
    async def discovery(self, *, max_staleness: float = 3600.0) -> AsyncIterator[Discovery]:
        discovery = await self.open(max_staleness=max_staleness)
        try:
            yield discovery
        finally:
            await discovery.close()


def new_name() -> str:
    """A service that no other test knows. It is a DNS label."""
    return f"s{uuid4().hex[:12]}"


def endpoint(
    number: int,
    *,
    id: str = "",  # noqa: A002  the field's name
    zone: str = "",
    tags: tuple[str, ...] = (),
    weight: int = 1,
) -> Endpoint:
    """An instance that does not exist."""
    return Endpoint(f"http://127.0.0.{number}:8000", id, zone, tags, weight)


async def urls(discovery: Discovery, service: str) -> set[str]:
    """The URLs of who is known, none where there is nobody."""
    try:
        return {found.url for found in await discovery.resolve(service)}
    except Unavailable:
        return set()


async def until_known(discovery: Discovery, service: str, *expected: Endpoint) -> None:
    """Waits until these and no others are known."""
    wanted, seen = {each.url for each in expected}, set[str]()
    try:
        async with asyncio.timeout(PATIENCE):
            while (seen := await urls(discovery, service)) != wanted:
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"{service} is known at {seen or 'no place'}, not at {wanted or 'no place'}")


async def told(changes: AsyncIterator[Sequence[Endpoint]]) -> set[str]:
    """The URLs that a watcher is told next."""
    async with asyncio.timeout(PATIENCE):
        return {found.url for found in await anext(changes)}


class DiscoverySuite(DiscoveryScenarios):
    """Finding, watching and registering with a registry that works."""

    async def test_a_service_that_nobody_offers_is_unavailable(self) -> None:
        async with self.discovery() as discovery:
            with pytest.raises(Unavailable, match="nobody-offers-this"):
                await discovery.resolve("nobody-offers-this")

    async def test_all_instances_of_a_service_are_found(self) -> None:
        service, found = new_name(), [endpoint(2), endpoint(3), endpoint(4)]
        for each in found:
            await self.announce(service, each)
        async with self.discovery() as discovery:
            await until_known(discovery, service, *found)

    async def test_services_are_kept_apart(self) -> None:
        one, other = new_name(), new_name()
        await self.announce(one, endpoint(2))
        await self.announce(other, endpoint(3))
        async with self.discovery() as discovery:
            await until_known(discovery, one, endpoint(2))
            await until_known(discovery, other, endpoint(3))

    async def test_the_same_tuple_is_returned_as_long_as_nothing_changes(self) -> None:
        service, other = new_name(), new_name()
        await self.announce(service, endpoint(2))
        async with self.discovery() as discovery:
            first = await discovery.resolve(service)
            await self.announce(other, endpoint(3))
            assert isinstance(first, tuple)
            assert await discovery.resolve(service) is first

    @needs("changes")
    async def test_another_tuple_is_returned_after_a_change(self) -> None:
        service = new_name()
        await self.announce(service, endpoint(2))
        async with self.discovery() as discovery:
            first = await discovery.resolve(service)
            await self.announce(service, endpoint(3))
            await until_known(discovery, service, endpoint(2), endpoint(3))
            assert await discovery.resolve(service) is not first
            assert [each.url for each in first] == [endpoint(2).url]

    async def test_instances_have_ids_of_their_own_that_stay(self) -> None:
        service, found = new_name(), [endpoint(2), endpoint(3)]
        for each in found:
            await self.announce(service, each)
        ids: list[dict[str, str]] = []
        for _ in range(2):
            async with self.discovery() as discovery:
                await until_known(discovery, service, *found)
                ids.append({each.url: each.id for each in await discovery.resolve(service)})
        assert len(set(ids[0].values())) == 2
        assert ids[0] == ids[1]

    @needs("describes")
    async def test_zone_tags_and_weight_of_an_instance_are_found(self) -> None:
        service = new_name()
        await self.announce(service, endpoint(2, id=f"{service}-a", zone="eu-1", tags=("canary", "v2"), weight=3))
        async with self.discovery() as discovery:
            (found,) = await discovery.resolve(service)
        assert (found.zone, found.tags, found.weight) == ("eu-1", ("canary", "v2"), 3)

    async def test_who_begins_to_watch_is_told_what_is_known(self) -> None:
        service = new_name()
        await self.announce(service, endpoint(2))
        async with self.discovery() as discovery:
            await until_known(discovery, service, endpoint(2))
            assert await told(discovery.watch(service)) == {endpoint(2).url}

    @needs("changes")
    async def test_who_watches_is_told_of_each_change(self) -> None:
        service = new_name()
        async with self.discovery() as discovery:
            changes = discovery.watch(service)
            assert await told(changes) == set()
            await self.announce(service, endpoint(2))
            assert await told(changes) == {endpoint(2).url}
            await self.announce(service, endpoint(3))
            assert await told(changes) == {endpoint(2).url, endpoint(3).url}
            await self.withdraw(service, endpoint(2))
            assert await told(changes) == {endpoint(3).url}

    @needs("changes")
    async def test_a_slow_watcher_sees_the_newest_state_and_makes_nobody_wait(self) -> None:
        service, found = new_name(), [endpoint(number) for number in range(2, 8)]
        async with self.discovery() as discovery:
            slow = discovery.watch(service)
            assert await told(slow) == set()
            for each in found:
                await self.announce(service, each)
            await until_known(discovery, service, *found)
            assert await told(slow) == {each.url for each in found}

    @needs("changes")
    async def test_a_watcher_that_goes_away_harms_nobody(self) -> None:
        service = new_name()
        async with self.discovery() as discovery:
            stays, goes = discovery.watch(service), discovery.watch(service)
            assert await told(stays) == set()
            assert await told(goes) == set()
            waiting = asyncio.ensure_future(anext(goes))
            await asyncio.sleep(0)
            waiting.cancel()
            await self.announce(service, endpoint(2))
            assert await told(stays) == {endpoint(2).url}

    async def test_who_gives_up_waiting_harms_no_other(self) -> None:
        service = new_name()
        await self.announce(service, endpoint(2))
        async with self.discovery() as discovery:
            impatient = asyncio.ensure_future(discovery.resolve(service))
            patient = asyncio.ensure_future(discovery.resolve(service))
            await asyncio.sleep(0)
            impatient.cancel()
            async with asyncio.timeout(PATIENCE):
                assert [each.url for each in await patient] == [endpoint(2).url]

    async def test_closing_a_second_time_does_nothing(self) -> None:
        async with self.discovery() as discovery:
            await urls(discovery, new_name())
            await discovery.close()

    async def test_what_is_known_is_shown(self) -> None:
        service = new_name()
        await self.announce(service, endpoint(2))
        async with self.discovery() as discovery:
            await until_known(discovery, service, endpoint(2))
            (standing,) = [each for each in discovery.standings() if each.service == service]
        assert (standing.instances, standing.stale_for, standing.trouble, standing.expired) == (1, 0.0, "", False)

    @needs("registers")
    async def test_who_is_deregistered_is_found_no_more(self) -> None:
        service = new_name()
        async with self.discovery() as discovery, self.discovery() as other:
            registrar = _registrar(discovery)
            await registrar.register(service, endpoint(2, id="a"))
            await registrar.register(service, endpoint(3, id="b"))
            await until_known(other, service, endpoint(2), endpoint(3))
            await registrar.deregister(service, endpoint(2, id="a"))
            await until_known(other, service, endpoint(3))
            await registrar.deregister(service, endpoint(3, id="b"))

    @needs("registers")
    async def test_deregistering_who_is_not_there_is_no_error(self) -> None:
        service = new_name()
        async with self.discovery() as discovery:
            registrar = _registrar(discovery)
            await registrar.deregister(service, endpoint(2))
            await registrar.register(service, endpoint(2))
            await registrar.deregister(service, endpoint(2))
            await registrar.deregister(service, endpoint(2))

    @needs("registers")
    async def test_registering_the_same_id_again_replaces_the_instance(self) -> None:
        service = new_name()
        async with self.discovery() as discovery, self.discovery() as other:
            registrar = _registrar(discovery)
            await registrar.register(service, endpoint(2, id="same"))
            await until_known(other, service, endpoint(2))
            await registrar.register(service, endpoint(3, id="same"))
            await until_known(other, service, endpoint(3))
            await registrar.deregister(service, endpoint(3, id="same"))


def _registrar(discovery: Discovery) -> Registrar:
    assert isinstance(discovery, Registrar), "this adapter promises that instances register"
    return discovery
