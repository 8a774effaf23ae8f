"""Where a verifier finds public keys: in the settings, or at the issuer's JWKS URL."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from typing import Final, Protocol

import aiohttp
import orjson
from jwt import PyJWK

from microkit.auth.keys import UnusableKey, read_key, read_key_set
from microkit.errors import Unavailable

logger = logging.getLogger(__name__)

_MAX_BYTES: Final = 256 * 1024
_MAX_KEYS: Final = 100
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0


class KeySource(Protocol):
    """The public keys of one issuer."""

    def prepare(self) -> None:
        """Begins to load what must be loaded, so that the issuer need not be there when the first token comes."""
        ...

    async def find(self, kid: str) -> PyJWK | None:
        """The key with this id, ``None`` where the issuer has none.

        Raises:
            Unavailable: no key has been loaded yet, and none can be.
        """
        ...

    async def close(self) -> None:
        """Ends what runs in the background."""
        ...


class FixedKeys:
    """Keys that are known from the start: a JWKS document."""

    def __init__(self, document: object) -> None:
        self._keys = read_key_set(document)

    def prepare(self) -> None:
        return

    async def find(self, kid: str) -> PyJWK | None:
        return self._keys.get(kid)

    async def close(self) -> None:
        return


class RemoteKeys:
    """Keys at a JWKS URL, loaded by :meth:`prepare`, or when first asked for.

    They are loaded again every ``max_age`` seconds, in the background, and when an unknown id is asked for, at most
    every ``retry_after`` seconds. While the issuer is away, the last keys that were loaded stay in force.
    """

    def __init__(
        self, url: str, session: aiohttp.ClientSession, *, max_age: float = 300.0, retry_after: float = 30.0
    ) -> None:
        self._url = url
        self._session = session
        self._max_age = max_age
        self._retry_after = retry_after
        self._keys: dict[str, PyJWK] | None = None
        self._asked_at = self._loaded_at = float("-inf")
        self._loading: asyncio.Task[None] | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._asked_for = False

    @property
    def empty(self) -> bool:
        """Whether no keys have been loaded yet."""
        return self._keys is None

    @property
    def loading(self) -> bool:
        """Whether they are being loaded."""
        return self._loading is not None

    def prepare(self) -> None:
        if self._preparing is None:
            self._preparing = asyncio.create_task(self._until_loaded(), name="prepare JWKS")

    async def _until_loaded(self) -> None:
        pause = _FIRST_PAUSE
        while self._keys is None:
            await asyncio.shield(self._start())
            if self._keys is None:
                if not self._asked_for:
                    self._asked_at = float("-inf")  # whoever comes first may ask again at once
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  jitter, no secret
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def find(self, kid: str) -> PyJWK | None:
        self._asked_for = True
        known = self._keys
        if known is None:
            # Nothing can be verified yet, so ask again soon; a second apart, that a dead issuer is not hammered.
            await self._load(at_least_since=min(1.0, self._retry_after))
        elif kid not in known:
            await self._load(at_least_since=self._retry_after)
        elif self._stale():
            self._start()
        if self._keys is None:
            raise Unavailable("The keys to verify access tokens with cannot be loaded", headers={"Retry-After": "1"})
        return self._keys.get(kid)

    async def close(self) -> None:
        tasks = [task for task in (self._preparing, self._loading) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _stale(self) -> bool:
        now = time.monotonic()
        return now - self._loaded_at > self._max_age and now - self._asked_at > self._retry_after

    async def _load(self, *, at_least_since: float) -> None:
        if self._loading is None and time.monotonic() - self._asked_at < at_least_since:
            return
        # One load for all who wait; who stops waiting does not stop it for the others.
        await asyncio.shield(self._start())

    def _start(self) -> asyncio.Task[None]:
        if self._loading is None:
            self._asked_at = time.monotonic()
            self._loading = asyncio.create_task(self._fetch(), name="load JWKS")
            self._loading.add_done_callback(self._done)
        return self._loading

    def _done(self, _: asyncio.Task[None]) -> None:
        self._loading = None

    async def _fetch(self) -> None:
        timeout = aiohttp.ClientTimeout(total=5.0)
        try:
            async with self._session.get(self._url, allow_redirects=False, timeout=timeout) as response:
                self._keys = _usable(orjson.loads(await _read(response)))
            self._loaded_at = time.monotonic()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, UnusableKey) as error:
            # Services of a system start in any order: it is no trouble yet where nobody has brought a token.
            level = logging.WARNING if self._asked_for else logging.INFO
            logger.log(level, "no keys from %s: %s", self._url, str(error) or type(error).__name__)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    if response.status != 200:
        raise UnusableKey(f"the answer is {response.status}")
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MAX_BYTES:
            raise UnusableKey(f"the key set is larger than {_MAX_BYTES} bytes")
    return bytes(body)


def _usable(document: object) -> dict[str, PyJWK]:
    """The usable keys of another's key set: keys of kinds that we do not use are no error there (RFC 7517, 5)."""
    listed = document.get("keys") if isinstance(document, Mapping) else None
    if not isinstance(listed, list):
        raise UnusableKey("the answer is no key set")
    found: dict[str, PyJWK] = {}
    for jwk in listed[:_MAX_KEYS]:
        try:
            found.setdefault(str(jwk.get("kid")), read_key(jwk)) if isinstance(jwk, Mapping) else None
        except UnusableKey as error:
            logger.info("passed over in the key set: %s", error)
    if not found:
        raise UnusableKey("the key set has no usable key")
    return found
