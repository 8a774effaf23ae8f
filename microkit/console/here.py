"""A system in this process as the console sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from microkit.console.desk import Document, Post
from microkit.db import Database
from microkit.declared import topics_of
from microkit.system import RunningSystem
from microkit.telemetry import TraceRing


class Here:
    """An :class:`~microkit.console.observe.Observed` that is ``running`` in this process."""

    def __init__(self, running: RunningSystem) -> None:
        self._running = running

    @property
    def name(self) -> str:
        return self._running.name

    @property
    def ring(self) -> TraceRing:
        return self._running.ring

    @property
    def databases(self) -> Mapping[str, Database]:
        return self._running.databases

    @property
    def posts(self) -> Sequence[Post]:
        return [
            Post(
                name,
                instance.parts.bus,
                instance.parts.database,
                {group: topics_of(listeners) for group, listeners in instance.declared.groups().items()},
            )
            for name, instance in self._running.instances.items()
            if instance.declared.stores and instance.running and name == instance.name  # the others share its database
        ]

    async def services(self) -> list[Document]:
        found = []
        for name, instance in self._running.instances.items():
            reports = await instance.health.report() if instance.running else {}
            found.append(
                {
                    "name": name,
                    "url": instance.url if instance.running else None,
                    "state": str(instance.health.state),
                    "parts": {
                        part: {"up": report.up, "critical": report.critical, **report.details}
                        for part, report in reports.items()
                    },
                }
            )
        return found
