"""The events of other services that this one handles, as their contracts declare them.

Where a neighbour publishes its contracts as a package, import them from there instead. Declare every event of a topic,
also those that are not handled: an event of a type that is declared nowhere goes to the dead-letter topic.
"""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from microkit import Event
from pydantic import Field


class Rated(Event, topic="ratings.ratings", key="subject_id"):
    """Somebody has given something its stars."""

    subject_id: UUID
    stars: Annotated[int, Field(ge=1, le=5)]
