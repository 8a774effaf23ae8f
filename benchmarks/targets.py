"""What each figure is to reach. Figures without a target are there to be compared."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple


class Target(NamedTuple):
    """A bound that the target itself is within."""

    bound: Literal["≤", "≥"]
    value: float

    def met(self, figure: float) -> bool:
        return figure <= self.value if self.bound == "≤" else figure >= self.value

    def __str__(self) -> str:
        return f"{self.bound} {self.value:g}"


TARGETS: Final = {
    "http": {
        "post_us": Target("≤", 65),
        "get_us": Target("≤", 55),
        "post_us_sampled_10": Target("≤", 40),
        "ratio_fastapi_full": Target("≥", 4),
        "wire_ratio_fastapi_full": Target("≥", 4),
    },
    "bus": {
        "redis_publish": Target("≥", 25_000),
        "redis_consume": Target("≥", 20_000),
        "kafka_publish": Target("≥", 30_000),
        "kafka_consume": Target("≥", 20_000),
        "inbox_effects": Target("≥", 4_000),
        "behind_mb": Target("≤", 150),
    },
    "calls": {
        "ratio": Target("≥", 0.6),
        "breaker_us": Target("≤", 6),
    },
    "gateway": {
        "gateway": Target("≥", 5_000),
        "ratio_starlette_httpx": Target("≥", 10),
        "ratio_starlette_aiohttp": Target("≥", 0.9),
        "routes_1000_cost": Target("≤", 1.1),
    },
    "outbox": {
        "relay": Target("≥", 15_000),
        "relay_million_done": Target("≥", 13_500),
        "relay_million_pending": Target("≥", 13_500),
        "idle_latency_ms_p50": Target("≤", 15),
    },
    "saga": {
        "sagas": Target("≥", 1_000),
        "sagas_million_ratio": Target("≥", 0.9),
        "sagas_local": Target("≥", 1_000),
        "resume_10000_s": Target("≤", 30),
    },
    "overload": {
        "cpu_goodput": Target("≥", 0.8),
        "cpu_p99_ratio": Target("≤", 3),
        "small_goodput": Target("≥", 0.8),
        "small_p99_ratio": Target("≤", 3),
        "db_goodput": Target("≥", 0.8),
        "db_p99_ratio": Target("≤", 3),
    },
    "startup": {
        "import_ms": Target("≤", 250),
        "up_first_s": Target("≤", 3),
        "up_s": Target("≤", 3),
        "resident_mb": Target("≤", 400),
    },
    "transactions": {
        "tx_ratio_fastapi": Target("≥", 2),
    },
}
"""By benchmark and figure, as ``--json`` names them."""
