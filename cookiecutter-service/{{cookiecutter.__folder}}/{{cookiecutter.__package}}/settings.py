"""The settings of {{ cookiecutter.service_name }} (``{{ cookiecutter.__env }}_…``): its own, and those of every service."""

from __future__ import annotations

from microkit import ServiceSettings
from pydantic import Field


class Settings(ServiceSettings):
    average_from: int = Field(3, ge=1, description="ratings that it takes before their average is shown")
