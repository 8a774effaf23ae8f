"""A small service: notes that are taken, published and counted."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import aiohttp
from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from microkit import ANYONE, Contract, Event, Instance, Service, Transaction, get, post


class Note(BaseModel):
    text: str


class NoteTaken(Event, topic="notes.notes", key="note_id"):
    note_id: UUID
    text: str


class NoteDropped(Event, topic="notes.notes", key="note_id"):
    note_id: UUID


class Notes(Contract, service="notes", prefix="/notes", allow=ANYONE):
    @post("", status=201)
    async def take(self, body: Note) -> Note: ...

    @get("/count")
    async def count(self) -> int: ...


class Base(DeclarativeBase): ...


class NoteRow(Base):
    __tablename__ = "note"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    text: Mapped[str]


class SeenRow(Base):
    __tablename__ = "seen"

    id: Mapped[UUID] = mapped_column(primary_key=True)


def notes_service() -> Service:
    service = Service("notes", tables=Base.metadata)

    @service.handles(Notes.take)
    async def take(body: Note, tx: Transaction) -> Note:
        row = NoteRow(id=uuid4(), text=body.text)
        tx.add(row)
        tx.publish(NoteTaken(note_id=row.id, text=row.text))
        return body

    @service.handles(Notes.count)
    async def count(tx: Transaction) -> int:
        return await tx.scalar(select(func.count()).select_from(SeenRow)) or 0

    @service.on(NoteTaken)
    async def see(event: NoteTaken, tx: Transaction) -> None:
        tx.add(SeenRow(id=event.note_id))

    return service


async def ask(url: str, method: str = "GET", json: object = None) -> tuple[int, object]:
    async with aiohttp.ClientSession() as session, session.request(method, url, json=json) as answer:
        return answer.status, await answer.json()


async def eventually_seen(instance: Instance, wanted: int) -> None:
    async with asyncio.timeout(60):
        while (await ask(f"{instance.url}/notes/count"))[1] != wanted:
            await asyncio.sleep(0.02)
