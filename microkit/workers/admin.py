"""The admin endpoints of an instance of several workers: one document from theirs, and what the workers ask."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from microkit.admin.answers import answered, guard, problem
from microkit.declared import Declared
from microkit.telemetry.metrics import CONTENT_TYPE
from microkit.workers.asking import Asked
from microkit.workers.merging import Whole
from microkit.workers.place import LAST_WORDS, METRICS, READY
from microkit.workers.slot import Slot

Document = dict[str, Any]

TOLD_BY_EACH: Final = ("info", "pool", "breakers", "endpoints", "sagas", "outbox", "consumers")
_LONGEST_LEVEL: Final = 1000
_LONGEST_WORDS: Final = 64 * 1024 * 1024


class Instance(Protocol):
    """The workers as these endpoints see them."""

    declared: Declared
    slots: list[Slot]
    whole: Whole
    stopping: bool
    level: str | None

    async def gather(self) -> bytes: ...


def app_of_workers(instance: Instance) -> Starlette:
    """What the workers ask: for the metrics of all, and whether one is ready. And where each leaves its own when it
    ends."""
    admin = _Admin(instance)
    return Starlette(
        routes=[
            Route(METRICS, admin.metrics),
            Route(READY, admin.ready),
            Route(f"{LAST_WORDS}{{process}}", admin.last_words, methods=["POST"]),
        ]
    )


def admin_app(instance: Instance, *, loopback: bool) -> Starlette:
    """The endpoints of the instance; ``loopback`` is whether they are reached from this machine only."""
    admin = _Admin(instance)
    return Starlette(
        routes=[
            Route("/health", admin.health),
            Route("/health/live", admin.live),
            Route(READY, admin.ready),
            Route(METRICS, admin.metrics),
            Route("/log-level", admin.read_level, methods=["GET"]),
            Route("/log-level", admin.change_level, methods=["PUT"]),
            *(Route(f"/{what}", admin.each) for what in TOLD_BY_EACH),
        ],
        middleware=guard(loopback=loopback),
    )


class _Admin:
    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    async def metrics(self, _: Request) -> Response:
        return Response(await self._instance.gather(), headers={"content-type": CONTENT_TYPE})

    async def last_words(self, request: Request) -> Response:
        process = request.path_params["process"]
        worker = next((slot.number for slot in self._instance.slots if slot.has(process)), None)
        text = await _body(request, _LONGEST_WORDS)
        if worker is None or text is None:
            return problem(404, "Not Found", f"there is no worker process {process}")
        self._instance.whole.told(process, text.decode(), worker=worker, last=True)
        return answered({"process": process})

    async def health(self, _: Request) -> Response:
        workers = await self._ask("/health")
        told = [worker for worker in workers if "state" in worker]
        ready = any(worker["status"] != "down" for worker in told)
        whole = all(worker.get("status") == "up" for worker in workers)
        begun = any(slot.ready for slot in self._instance.slots)
        state = "draining" if self._instance.stopping else "ready" if begun else "starting"
        document = {
            "status": "down" if not ready else "up" if whole else "degraded",
            "service": self._instance.declared.name,
            "state": state,
            "parts": _worst([worker.pop("parts", {}) for worker in told]),
            "workers": [
                {**worker, "restarts": slot.restarts}
                for worker, slot in zip(workers, self._instance.slots, strict=True)
            ],
        }
        return answered(document, 200 if ready else 503)

    async def ready(self, _: Request) -> Response:
        ready = await self._any(READY)
        return answered({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    async def live(self, _: Request) -> Response:
        # While workers start and end, the one that looks after them is what lives.
        live = not all(slot.ready for slot in self._instance.slots) or await self._any("/health/live")
        return answered({"status": "up" if live else "down"}, 200 if live else 503)

    async def read_level(self, _: Request) -> Response:
        return _levels(await self._ask("/log-level"))

    async def change_level(self, request: Request) -> Response:
        body = await _body(request, _LONGEST_LEVEL)
        if body is None:
            return problem(413, "Content Too Large", 'say {"level": "DEBUG"}')
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return problem(415, "Unsupported Media Type", 'send application/json, such as {"level": "DEBUG"}')
        workers = await self._ask("/log-level", "PUT", body)
        # Who is started from now on has it as well: one that fails again and again is the one to hear more of.
        self._instance.level = next((each["level"] for each in workers if "level" in each), self._instance.level)
        return _levels(workers)

    async def each(self, request: Request) -> Response:
        """One document with that of each worker."""
        workers = await self._ask(request.url.path)
        refused = [worker for worker in workers if "detail" in worker]
        if workers and len(refused) == len(workers):
            return problem(refused[0].get("status", 503), "Not to be had", refused[0]["detail"])
        return answered({"workers": workers})

    async def _any(self, path: str) -> bool:
        """Whether one says yes; who answers nothing is waited for only while none has."""
        asking = [asyncio.create_task(_ask(slot, path)) for slot in self._instance.slots]
        try:
            for asked in asyncio.as_completed(asking):
                answer = await asked
                if answer is not None and answer.status == 200:
                    return True
            return False
        finally:
            for task in asking:
                task.cancel()

    async def _ask(self, path: str, method: str = "GET", body: bytes | None = None) -> list[Document]:
        slots = self._instance.slots
        answers = await asyncio.gather(*(_ask(slot, path, method, body) for slot in slots))
        return [_told(slot, answer) for slot, answer in zip(slots, answers, strict=True)]


async def _ask(slot: Slot, path: str, method: str = "GET", body: bytes | None = None) -> Asked | None:
    return await slot.current.ask(method, path, body) if slot.current is not None else None


async def _body(request: Request, most: int) -> bytes | None:
    """``None`` where it has more bytes; what is beyond them is not read."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > most:
            return None
    return bytes(found)


def _told(slot: Slot, answer: Asked | None) -> Document:
    document = answer.document if answer is not None else None
    pid = slot.current.pid if slot.current is not None and slot.current.running else None
    if not isinstance(document, dict):
        document = {"status": 503, "detail": f"worker {slot.number} does not answer"}
    return {"worker": slot.number, "pid": pid, **document}


def _levels(workers: list[Document]) -> Response:
    refused = next((worker for worker in workers if "level" not in worker), None)
    if refused is not None:
        return problem(refused.get("status", 503), "Not done by all", str(refused.get("detail")))
    levels = {worker["level"] for worker in workers}
    return answered({"level": levels.pop() if len(levels) == 1 else None, "workers": workers})


def _worst(parts: Sequence[Mapping[str, Document]]) -> dict[str, Document]:
    """Each part as it is in the worker where it is worst."""
    found: dict[str, Document] = {}
    for of_worker in parts:
        for name, part in of_worker.items():
            if name not in found or (found[name]["status"], part["status"]) == ("up", "down"):
                found[name] = part
    return found
