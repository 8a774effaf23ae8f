"""The conformance suite for registries that may be away: the row "discovery" of the fault matrix."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import pytest

from microkit.discovery.port import Discovery, Registrar, Standing
from microkit.errors import Unavailable
from microkit.testing.discovery_suite import (
    PATIENCE,
    DiscoveryScenarios,
    endpoint,
    needs,
    new_name,
    told,
    until_known,
    urls,
)

SHORT: Final = 0.5
"""Seconds of staleness in the tests that wait for its end."""

LONG_ENOUGH: Final = 1.0
"""Seconds in which a loop without a pause would ask thousands of times."""

MOST_QUESTIONS: Final = 20
"""Questions in that time, for one service."""


class DiscoveryFaults(DiscoveryScenarios):
    """What must hold when the registry is away, empty, forgetful or slow."""

    async def kill(self) -> None:
        """Ends the registry; it is refused or silent from now on."""
        raise NotImplementedError

    async def revive(self) -> None:
        """Starts it again, with what it knew."""
        raise NotImplementedError

    async def empty(self) -> None:
        """From now on it answers that there is no instance of anything."""
        raise NotImplementedError

    async def fill(self) -> None:
        """Ends :meth:`empty`."""
        raise NotImplementedError

    async def hang(self) -> None:
        """From now on it takes questions and answers none."""
        raise NotImplementedError

    async def forget(self) -> None:
        """Restarts it without what it knew."""
        raise NotImplementedError

    async def die(self, discovery: Discovery) -> None:
        """Ends the process of the instances that ``discovery`` registered, without a farewell, and lets the time pass
        after which the registry notices."""
        raise NotImplementedError

    def asked(self) -> int:
        """How many questions were asked of the registry so far, answered or not."""
        raise NotImplementedError

    async def test_the_last_known_instances_are_kept_while_the_registry_is_gone(self) -> None:
        service = new_name()
        await self.announce(service, endpoint(2))
        async with self.discovery() as discovery:
            known = await discovery.resolve(service)
            await self.kill()
            standing = await self._trouble(discovery, service)
            assert await discovery.resolve(service) is known
            assert (standing.instances, standing.expired) == (1, False)
            await self.revive()

    async def test_the_last_known_instances_are_kept_while_the_registry_says_there_are_none(self) -> None:
        service = new_name()
        await self.announce(service, endpoint(2))
        async with self.discovery() as discovery:
            known = await discovery.resolve(service)
            await self.empty()
            standing = await self._trouble(discovery, service)
            assert await discovery.resolve(service) is known
            assert "no instance" in standing.trouble

    async def test_what_changed_while_the_registry_was_gone_is_seen_when_it_is_back(self) -> None:
        service = new_name()
        await self.announce(service, endpoint(2))
        async with self.discovery() as discovery:
            await until_known(discovery, service, endpoint(2))
            await self.kill()
            await self._trouble(discovery, service)
            await self.revive()
            await self.announce(service, endpoint(3))
            await until_known(discovery, service, endpoint(2), endpoint(3))
            (standing,) = discovery.standings()
            assert (standing.stale_for, standing.trouble) == (0.0, "")

    @pytest.mark.parametrize("how", ["gone", "empty"])
    async def test_what_is_too_old_is_not_believed_any_more(self, how: str) -> None:
        service = new_name()
        await self.announce(service, endpoint(2))
        async with self.discovery(max_staleness=SHORT) as discovery:
            changes = discovery.watch(service)
            await until_known(discovery, service, endpoint(2))
            assert await told(changes) in ({endpoint(2).url}, set())
            await (self.kill() if how == "gone" else self.empty())
            await until_known(discovery, service)
            with pytest.raises(Unavailable, match=service):
                await discovery.resolve(service)
            (standing,) = discovery.standings()
            assert standing.expired
            assert await self._told_none(discovery, service)
            await (self.revive() if how == "gone" else self.fill())
            await until_known(discovery, service, endpoint(2))

    async def test_a_dead_registry_is_not_hammered(self) -> None:
        service = new_name()
        await self.announce(service, endpoint(2))
        async with self.discovery() as discovery:
            await until_known(discovery, service, endpoint(2))
            await self.kill()
            await self._trouble(discovery, service)
            before = self.asked()
            await asyncio.sleep(LONG_ENOUGH)
            assert 0 < self.asked() - before <= MOST_QUESTIONS
            await self.revive()

    async def test_calls_ask_nothing_of_the_registry(self) -> None:
        service = new_name()
        await self.announce(service, endpoint(2))
        async with self.discovery() as discovery:
            await until_known(discovery, service, endpoint(2))
            before = self.asked()
            for _ in range(1000):
                await discovery.resolve(service)
            assert self.asked() - before <= MOST_QUESTIONS

    async def test_an_outage_is_logged_once_and_its_end_too(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="microkit.discovery")
        services = [new_name(), new_name(), new_name()]
        for service in services:
            await self.announce(service, endpoint(2))
        async with self.discovery() as discovery:
            for service in services:
                await until_known(discovery, service, endpoint(2))
            await self.kill()
            for service in services:
                await self._trouble(discovery, service)
            before = self.asked()
            async with asyncio.timeout(PATIENCE):
                while self.asked() < before + 6:
                    await asyncio.sleep(0.02)
            await self.revive()
            async with asyncio.timeout(PATIENCE):
                while any(standing.trouble for standing in discovery.standings()):
                    await asyncio.sleep(0.02)
        lines = [record.message for record in caplog.records if record.name == "microkit.discovery.directory"]
        assert sum("is away" in line for line in lines) == 1, lines
        assert sum("answers again" in line for line in lines) == 1, lines

    async def test_a_registry_that_is_away_from_the_start_is_found_when_it_comes(self) -> None:
        service = new_name()
        await self.announce(service, endpoint(2))
        await self.kill()
        async with self.discovery() as discovery:
            with pytest.raises(Unavailable, match=service):
                await discovery.resolve(service)
            await self.revive()
            await until_known(discovery, service, endpoint(2))

    async def test_a_registry_that_hangs_holds_up_nobody_longer_than_his_deadline(self) -> None:
        service = new_name()
        await self.announce(service, endpoint(2))
        async with self.discovery() as discovery:
            await until_known(discovery, service, endpoint(2))
            await self.hang()
            assert await urls(discovery, service) == {endpoint(2).url}
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await discovery.resolve(new_name())

    @needs("forgets_dead")
    async def test_an_instance_that_is_gone_without_a_farewell_is_found_no_more(self) -> None:
        service = new_name()
        await self.announce(service, endpoint(2))
        async with self.discovery() as discovery, self.discovery() as doomed:
            assert isinstance(doomed, Registrar)
            await doomed.register(service, endpoint(3, id="doomed"))
            await until_known(discovery, service, endpoint(2), endpoint(3))
            await self.die(doomed)
            await until_known(discovery, service, endpoint(2))

    @needs("registers")
    async def test_who_registers_while_the_registry_is_away_is_known_when_it_is_back(self) -> None:
        service = new_name()
        await self.kill()
        async with self.discovery() as discovery, self.discovery() as other:
            assert isinstance(discovery, Registrar)
            async with asyncio.timeout(PATIENCE):
                await discovery.register(service, endpoint(2))
            await self.revive()
            await until_known(other, service, endpoint(2))

    @needs("registers")
    async def test_who_was_forgotten_by_the_registry_is_registered_again(self) -> None:
        service = new_name()
        async with self.discovery() as discovery, self.discovery() as other:
            assert isinstance(discovery, Registrar)
            await discovery.register(service, endpoint(2))
            await until_known(other, service, endpoint(2))
            await self.forget()
            async with self.discovery() as newcomer:
                await until_known(newcomer, service, endpoint(2))

    @needs("registers")
    async def test_a_registry_that_is_away_holds_up_no_stop(self) -> None:
        service = new_name()
        async with self.discovery() as discovery:
            assert isinstance(discovery, Registrar)
            await discovery.register(service, endpoint(2))
            await self.kill()
            async with asyncio.timeout(PATIENCE):
                await discovery.deregister(service, endpoint(2))
        await self.revive()

    async def _trouble(self, discovery: Discovery, service: str) -> Standing:
        """Waits until it is shown that what is known of the service is stale."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for standing in discovery.standings():
                    if standing.service == service and standing.trouble:
                        assert standing.stale_for > 0
                        return standing
                await asyncio.sleep(0.02)

    async def _told_none(self, discovery: Discovery, service: str) -> bool:
        return await told(discovery.watch(service)) == set()
