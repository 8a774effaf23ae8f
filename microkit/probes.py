"""How the parts of an instance answer when health asks after them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from microkit.bus.consumer import ConsumerRuntime
from microkit.client import Upstream
from microkit.discovery.port import Discovery
from microkit.outbox import Relay
from microkit.saga import SagaEngine

Details = Mapping[str, Any]
Probe = Callable[[], Awaitable[Details | None]]


class PartDown(Exception):
    """A part does not do its work; the message says what is wrong."""


def answering(ping: Callable[[], Awaitable[None]]) -> Probe:
    """Up while ``ping`` returns."""

    async def probe() -> None:
        await ping()

    return probe


def relay_probe(relay: Relay) -> Probe:
    """Up while events are published; with the backlog and the age of its oldest."""

    async def probe() -> Details:
        health = relay.health()
        if not health.ok:
            raise PartDown("stalled" if health.stalled else health.trouble)
        return {"backlog": health.backlog.waiting, "oldest_seconds": round(health.backlog.oldest, 3)}

    return probe


def consumer_probe(consumers: ConsumerRuntime) -> Probe:
    """Up while every group's loop turns: a running process alone does not prove that events are handled."""

    async def probe() -> Details:
        progress = consumers.progress()
        stalled = [group.group for group in progress if group.stalled]
        if stalled:
            raise PartDown(f"stalled: {', '.join(stalled)}")
        return {
            group.group: {"in_flight": group.in_flight, "retrying": group.retrying, "trouble": group.trouble}
            for group in progress
        }

    return probe


def saga_probe(engine: SagaEngine) -> Probe:
    """Up while sagas are taken up and carried on."""

    async def probe() -> Details:
        health = engine.health()
        if not health.ok:
            raise PartDown(health.error)
        return {"in_flight": health.in_flight, "stuck": health.stuck}

    return probe


def discovery_probe(discovery: Discovery) -> Probe:
    """Up while what is known of every service is fresh. What is stale is still called, until it expires."""

    async def probe() -> Details:
        standings = discovery.standings()
        stale = [
            f"{each.service}: {'no instance' if each.expired else f'{each.instances} of {each.stale_for:.0f} s ago'}, "
            f"{each.trouble}"
            for each in standings
            if each.trouble
        ]
        if stale:
            raise PartDown("; ".join(stale))
        return {each.service: each.instances for each in standings}

    return probe


def clients_probe(upstreams: Mapping[str, Upstream]) -> Probe:
    """Up while every service that is called can be, as far as calls have shown; with its breaker and instances."""

    async def probe() -> Details:
        refused = [name for name, upstream in upstreams.items() if not upstream.callable]
        if refused:
            raise PartDown(f"the breaker is open: {', '.join(refused)}")
        return {name: upstream.state() for name, upstream in upstreams.items()}

    return probe
