"""The {{ cookiecutter.service_name }} service: its operations and the events that it handles."""

from __future__ import annotations

from pathlib import Path

from microkit import Service

from {{ cookiecutter.__package }} import handlers
from {{ cookiecutter.__package }}.contracts import {{ cookiecutter.__contract }}
from {{ cookiecutter.__package }}.neighbours import Rated
from {{ cookiecutter.__package }}.settings import Settings
from {{ cookiecutter.__package }}.tables import Base

service = Service(
    "{{ cookiecutter.service_name }}",
    port={{ cookiecutter.port }},
    settings=Settings,
    tables=Base.metadata,
    migrations=Path(__file__).parent / "migrations",
)

service.handles({{ cookiecutter.__contract }}.create)(handlers.create)
service.handles({{ cookiecutter.__contract }}.read)(handlers.read)
service.handles({{ cookiecutter.__contract }}.list)(handlers.list_all)
service.on(Rated)(handlers.count_rating)
