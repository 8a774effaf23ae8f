"""A contract and a caller make a client object."""

from __future__ import annotations

from typing import TypeVar

from microkit.contract import Caller, Contract

C = TypeVar("C", bound=Contract)


def connect(contract: type[C], caller: Caller) -> C:
    """The operations of ``contract``, carried out by ``caller``."""
    return contract(caller)
