"""Everything around a service that is not its business logic.

The names below are the public ones. Each is imported when it is first used, so that ``import microkit`` stays light: it
loads no database, no HTTP client, no command line.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from microkit.auth import Principal
    from microkit.choreography import Process
    from microkit.contract import ANYONE, SERVICE, SIGNED_IN, Contract, Header, delete, get, patch, post, put
    from microkit.db import Database, Transaction
    from microkit.errors import (
        BadRequest,
        ConfigurationError,
        Conflict,
        DeadLetter,
        DefinitionError,
        Forbidden,
        MicrokitError,
        NotFound,
        Problem,
        RemoteProblem,
        Unauthorized,
        Unavailable,
        ValidationFailed,
    )
    from microkit.gateway import Gateway, Route
    from microkit.instance import Instance
    from microkit.message import Event, upcast
    from microkit.page import Page, PageRequest
    from microkit.proxies import ClientAddress
    from microkit.resilience.rate import Limit
    from microkit.saga import (
        ASK_AGAIN,
        NO_EFFECT,
        REFUSE,
        Rate,
        Retry,
        Saga,
        StepContext,
        StepNotYet,
        StepRefused,
        await_event,
        compensatable,
        parallel,
        pivot,
        request,
        retriable,
    )
    from microkit.service import Service
    from microkit.settings import Duration, ServiceSettings, Size
    from microkit.system import System
    from microkit.telemetry import Telemetry

__version__: Final = "0.1.0"

_HOMES: Final = {
    "auth.principal": ["Principal"],
    "choreography": ["Process"],
    "contract": [
        "ANYONE",
        "SERVICE",
        "SIGNED_IN",
        "Contract",
        "Header",
        "delete",
        "get",
        "patch",
        "post",
        "put",
    ],
    "db": ["Database", "Transaction"],
    "errors": [
        "BadRequest",
        "ConfigurationError",
        "Conflict",
        "DeadLetter",
        "DefinitionError",
        "Forbidden",
        "MicrokitError",
        "NotFound",
        "Problem",
        "RemoteProblem",
        "Unauthorized",
        "Unavailable",
        "ValidationFailed",
    ],
    "gateway": ["Gateway", "Route"],
    "instance": ["Instance"],
    "message": ["Event", "upcast"],
    "page": ["Page", "PageRequest"],
    "proxies": ["ClientAddress"],
    "saga": [
        "ASK_AGAIN",
        "NO_EFFECT",
        "REFUSE",
        "Rate",
        "Retry",
        "Saga",
        "StepContext",
        "StepNotYet",
        "StepRefused",
        "await_event",
        "compensatable",
        "parallel",
        "pivot",
        "request",
        "retriable",
    ],
    "resilience.rate": ["Limit"],
    "service": ["Service"],
    "settings": ["Duration", "ServiceSettings", "Size"],
    "system": ["System"],
    "telemetry": ["Telemetry"],
}
_HOME: Final = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ANYONE",
    "ASK_AGAIN",
    "NO_EFFECT",
    "REFUSE",
    "SERVICE",
    "SIGNED_IN",
    "BadRequest",
    "ClientAddress",
    "ConfigurationError",
    "Conflict",
    "Contract",
    "Database",
    "DeadLetter",
    "DefinitionError",
    "Duration",
    "Event",
    "Forbidden",
    "Gateway",
    "Header",
    "Instance",
    "Limit",
    "MicrokitError",
    "NotFound",
    "Page",
    "PageRequest",
    "Principal",
    "Problem",
    "Process",
    "Rate",
    "RemoteProblem",
    "Retry",
    "Route",
    "Saga",
    "Service",
    "ServiceSettings",
    "Size",
    "StepContext",
    "StepNotYet",
    "StepRefused",
    "System",
    "Telemetry",
    "Transaction",
    "Unauthorized",
    "Unavailable",
    "ValidationFailed",
    "await_event",
    "compensatable",
    "delete",
    "get",
    "parallel",
    "patch",
    "pivot",
    "post",
    "put",
    "request",
    "retriable",
    "upcast",
]


def __getattr__(name: str) -> object:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module 'microkit' has no attribute {name!r}")
    value = getattr(import_module(f"microkit.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
