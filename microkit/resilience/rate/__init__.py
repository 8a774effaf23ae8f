"""Rate limits: how often somebody may do something, counted by token buckets in memory or in Redis."""

from microkit.resilience.rate.connect import connect
from microkit.resilience.rate.failover import Failover
from microkit.resilience.rate.fields import Policy
from microkit.resilience.rate.limit import Limit, Verdict, network_of
from microkit.resilience.rate.memory import MemoryRateLimiter
from microkit.resilience.rate.port import RateLimiter

__all__ = ["Failover", "Limit", "MemoryRateLimiter", "Policy", "RateLimiter", "Verdict", "connect", "network_of"]
