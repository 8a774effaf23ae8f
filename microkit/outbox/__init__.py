"""The outbox: events committed with the rows they tell of, and delivered by a relay; the inbox: their effects, once."""

from microkit.outbox.dead_letters import burial
from microkit.outbox.inbox import effect_once, effects_once
from microkit.outbox.options import RelayHealth, RelayOptions
from microkit.outbox.relay import Relay
from microkit.outbox.writer import install

__all__ = ["Relay", "RelayHealth", "RelayOptions", "burial", "effect_once", "effects_once", "install"]
