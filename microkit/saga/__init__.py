"""Sagas: work across services that ends completed, compensated, or parked where an operator sees it."""

from microkit.saga.definition import Saga
from microkit.saga.engine import EngineHealth, SagaEngine
from microkit.saga.retention import SagaRetention
from microkit.saga.step import (
    NO_EFFECT,
    Failure,
    Retry,
    StepContext,
    StepNotYet,
    StepRefused,
    compensatable,
    pivot,
    retriable,
)

__all__ = [
    "NO_EFFECT",
    "EngineHealth",
    "Failure",
    "Retry",
    "Saga",
    "SagaEngine",
    "SagaRetention",
    "StepContext",
    "StepNotYet",
    "StepRefused",
    "compensatable",
    "pivot",
    "retriable",
]
