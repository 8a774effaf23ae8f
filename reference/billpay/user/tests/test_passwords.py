"""Hashing: strong, in threads, and as slow for strangers as for members."""

from __future__ import annotations

import threading
from typing import Literal

import anyio
import pytest
from argon2 import PasswordHasher, extract_parameters
from argon2.low_level import Type

from reference.billpay.user.passwords import Passwords

pytestmark = pytest.mark.anyio


class Watched(PasswordHasher):
    """Counts what is verified, and where."""

    def __init__(self) -> None:
        super().__init__(time_cost=1, memory_cost=8, parallelism=1)
        self.verified: list[str] = []
        self.threads: set[int] = set()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def verify(self, hash: str | bytes, password: str | bytes) -> Literal[True]:
        with self.lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.verified.append(str(hash))
            self.threads.add(threading.get_ident())
            return super().verify(hash, password)
        finally:
            with self.lock:
                self.at_once -= 1


async def test_the_hash_is_argon2id_of_the_recommended_strength() -> None:
    parameters = extract_parameters(await Passwords().hash("copper lantern"))
    assert parameters.type is Type.ID
    assert parameters.memory_cost >= 19 * 1024
    assert parameters.time_cost >= 2
    assert parameters.parallelism == 1
    assert parameters.salt_len >= 16


async def test_a_password_fits_its_own_hash_only() -> None:
    passwords = Passwords(Watched())
    stored = await passwords.hash("copper lantern")
    assert await passwords.verify(stored, "copper lantern")
    assert not await passwords.verify(stored, "Copper lantern")
    assert not await passwords.verify(stored, "copper lantern ")
    assert stored != await passwords.hash("copper lantern")


async def test_a_password_is_normalized_before_it_is_compared() -> None:
    passwords = Passwords(Watched())
    stored = await passwords.hash("Z\u00fcrich-2026")
    assert await passwords.verify(stored, "Zu\u0308rich-2026")


async def test_an_unknown_user_costs_a_verification_too() -> None:
    watched = Watched()
    passwords = Passwords(watched)
    stored = await passwords.hash("copper lantern")
    assert not await passwords.verify(None, "copper lantern")
    (dummy,) = watched.verified
    assert extract_parameters(dummy) == extract_parameters(stored)


@pytest.mark.parametrize("password", ["", "short", "x" * 129, "x" * 100_000, "\ud800" * 9])
async def test_a_password_that_cannot_be_right_costs_a_verification_too(password: str) -> None:
    watched = Watched()
    passwords = Passwords(watched)
    stored = await passwords.hash("copper lantern")
    assert not await passwords.verify(stored, password)
    assert watched.verified == [stored]


async def test_a_damaged_hash_fits_nothing() -> None:
    assert not await Passwords(Watched()).verify("$argon2id$garbage", "copper lantern")


async def test_hashing_leaves_the_event_loop_alone_and_is_bounded() -> None:
    watched = Watched()
    passwords = Passwords(watched, threads=2)
    stored = await passwords.hash("copper lantern")
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(passwords.verify, stored, "copper lantern")
    assert len(watched.verified) == 20
    assert threading.get_ident() not in watched.threads
    assert watched.most_at_once <= 2


async def test_a_hash_of_former_strength_is_outdated() -> None:
    weak = await Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)).hash("copper lantern")
    strong = Passwords()
    assert strong.outdated(weak)
    assert not strong.outdated(await strong.hash("copper lantern"))
