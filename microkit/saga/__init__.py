"""Sagas: work across services that ends completed, compensated, or parked where an operator sees it."""

from microkit.saga.definition import (
    NO_EFFECT,
    Failure,
    Retry,
    Saga,
    StepContext,
    StepNotYet,
    StepRefused,
    compensatable,
    pivot,
    retriable,
)
from microkit.saga.engine import EngineHealth, SagaEngine

__all__ = [
    "NO_EFFECT",
    "EngineHealth",
    "Failure",
    "Retry",
    "Saga",
    "SagaEngine",
    "StepContext",
    "StepNotYet",
    "StepRefused",
    "compensatable",
    "pivot",
    "retriable",
]
