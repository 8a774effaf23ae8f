"""Asking the admin endpoints of running instances."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import orjson

from microkit.cli.folder import read_note
from microkit.errors import ConfigurationError

_PATIENCE: Final = aiohttp.ClientTimeout(total=10)

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one instance answered. ``document`` is its JSON, empty where it is something else. Of one that did not
    answer the ``status`` is 0, and the document's ``detail`` says why."""

    instance: str
    status: int
    text: str
    document: Document

    @property
    def trouble(self) -> str:
        """Why it cannot tell."""
        return str(self.document.get("detail", f"it answered {self.status}"))


def instances(urls: Sequence[str], service: str | None, folder: Path) -> dict[str, str]:
    """The admin endpoints at ``urls``, else those of the instances that run in ``folder``, by name.

    Raises:
        ConfigurationError: none runs there, or none has admin endpoints.
    """
    if urls:
        return {url: url for url in urls}
    note = read_note(folder)
    # The second of a service is called billing-2.
    of_service = re.compile(rf"{re.escape(service)}(-\d+)?") if service else re.compile(".*")
    found = {name: url for name, url in note.admin.items() if of_service.fullmatch(name)}
    if not found:
        what = f"{service!r} has no admin endpoints there" if service else "No service has admin endpoints there"
        raise ConfigurationError(
            f"{what}: set <SERVICE>_ADMIN_PORT, or name an instance's with --url http://127.0.0.1:9000"
        )
    return found


async def ask(
    instances: Mapping[str, str], path: str, *, method: str = "GET", body: Document | None = None
) -> list[Answer]:
    """What each answers; some may be away, as those are that are being restarted.

    Raises:
        ConfigurationError: none answers.
    """
    async with aiohttp.ClientSession(timeout=_PATIENCE, trust_env=False) as session:
        asking = (_one(session, name, f"{url.rstrip('/')}/{path}", method, body) for name, url in instances.items())
        answers = list(await asyncio.gather(*asking))
    if all(answer.status == 0 for answer in answers):
        raise ConfigurationError("; ".join(answer.trouble for answer in answers))
    return answers


def answered(answers: Sequence[Answer]) -> list[Answer]:
    """Without those that did not answer, which are named on stderr."""
    for answer in answers:
        if answer.status == 0:
            sys.stderr.write(f"microkit: left out: {answer.instance}. {answer.trouble}\n")
    return [answer for answer in answers if answer.status != 0]


async def told_by(instances: Mapping[str, str], path: str) -> list[Document]:
    """The documents, each with its ``instance``; of one with several workers each worker's, as ``billing worker 2``.
    Those that have no such thing are left out, where others have it; those that do not answer are, too.

    Raises:
        ConfigurationError: none answers, or one cannot tell.
    """
    found: list[Document] = []
    without: list[Answer] = []
    for answer in answered(await ask(instances, path)):
        if answer.status == 404:
            without.append(answer)
        elif answer.status != 200:
            raise ConfigurationError(f"{answer.instance} cannot tell: {answer.trouble}")
        else:
            found += of_workers(answer)
    if without and not found:
        raise ConfigurationError(f"{without[0].instance} cannot tell: {without[0].trouble}")
    return found


def of_workers(answer: Answer) -> list[Document]:
    """The document of an instance, or those of its workers that could tell."""
    workers = answer.document.get("workers")
    if workers is None:
        return [{"instance": answer.instance, **answer.document}]
    return [
        {"instance": f"{answer.instance} worker {worker['worker']}", **worker}
        for worker in workers
        if "detail" not in worker
    ]


async def _one(session: aiohttp.ClientSession, name: str, url: str, method: str, body: Document | None) -> Answer:
    try:
        async with session.request(method, url, json=body) as response:
            raw = await response.read()
            document = orjson.loads(raw) if "json" in response.content_type else {}
            return Answer(name, response.status, raw.decode("utf-8", "replace"), document)
    except aiohttp.InvalidURL:
        raise ConfigurationError(f"{url!r} is no URL: write one like http://127.0.0.1:9000") from None
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        why = f"No admin endpoints answer at {url}: {str(error) or 'no answer in time'}"
        return Answer(name, 0, "", {"status": "down", "detail": why})
