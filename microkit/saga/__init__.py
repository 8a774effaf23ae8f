"""Sagas: work across services that ends completed, compensated, or parked where an operator sees it."""

from microkit.saga.awaiting import ASK_AGAIN, REFUSE, await_event, request
from microkit.saga.definition import Saga
from microkit.saga.engine import EngineHealth, SagaEngine
from microkit.saga.group import parallel
from microkit.saga.kinds import compensatable, pivot, retriable
from microkit.saga.limits import Rate
from microkit.saga.retention import SagaRetention
from microkit.saga.step import NO_EFFECT, Failure, Retry, StepContext, StepNotYet, StepRefused

__all__ = [
    "ASK_AGAIN",
    "NO_EFFECT",
    "REFUSE",
    "EngineHealth",
    "Failure",
    "Rate",
    "Retry",
    "Saga",
    "SagaEngine",
    "SagaRetention",
    "StepContext",
    "StepNotYet",
    "StepRefused",
    "await_event",
    "compensatable",
    "parallel",
    "pivot",
    "request",
    "retriable",
]
