"""The tables of {{ cookiecutter.service_name }}. Each change here needs a migration; a test compares the two."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import DateTime, Index, Integer, String, Uuid
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase): ...


class {{ cookiecutter.__class }}Row(Base):
    __tablename__ = "{{ cookiecutter.resource }}"
    __table_args__ = (Index("{{ cookiecutter.resource }}_by_age", "added_at", "id"),)

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    added_by: Mapped[str] = mapped_column(String(255))
    added_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    stars: Mapped[int] = mapped_column(Integer)
    ratings: Mapped[int] = mapped_column(Integer)
