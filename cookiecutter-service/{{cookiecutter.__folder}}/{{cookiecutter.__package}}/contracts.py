"""What other services may import of {{ cookiecutter.service_name }}: schemas, operations and events; no behaviour."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from microkit import SIGNED_IN, Contract, Event, NotFound, Page, PageRequest, get, post
from pydantic import BaseModel, ConfigDict, Field


class New{{ cookiecutter.__class }}(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=200, examples=["Lamp"])]


class {{ cookiecutter.__class }}(BaseModel):
    id: UUID
    name: str
    added_by: str
    added_at: datetime
    ratings: int
    average: Annotated[float | None, Field(description="Of the stars given; null while there are too few ratings")]


class {{ cookiecutter.__class }}Added(Event, topic="{{ cookiecutter.service_name }}.{{ cookiecutter.__path }}", key="{{ cookiecutter.resource }}_id"):
    {{ cookiecutter.resource }}_id: UUID
    name: str


class {{ cookiecutter.__contract }}(Contract, service="{{ cookiecutter.service_name }}", prefix="/{{ cookiecutter.__path }}", allow=SIGNED_IN):
    @post("", status=201, allow="editor")
    async def create(self, body: New{{ cookiecutter.__class }}) -> {{ cookiecutter.__class }}:
        """Add a new {{ cookiecutter.__words }}."""
        ...

    @get("/{{ "{" ~ cookiecutter.resource ~ "_id}" }}", raises=(NotFound,))
    async def read(self, {{ cookiecutter.resource }}_id: UUID) -> {{ cookiecutter.__class }}:
        """One {{ cookiecutter.__words }}."""
        ...

    @get("")
    async def list(self, page: PageRequest) -> Page[{{ cookiecutter.__class }}]:
        """All {{ cookiecutter.__words_plural }}, newest first."""
        ...
