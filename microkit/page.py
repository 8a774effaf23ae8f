"""Pagination by cursor: pages are found by the last row's sort key, so that they stay right while rows come and go."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from typing import Annotated, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from microkit.errors import BadRequest

Item = TypeVar("Item")
Key = TypeVar("Key")

MAX_PAGE = 100


class MalformedCursor(BadRequest, status=400, title="The cursor is malformed"): ...


class PageRequest(BaseModel):
    """``?limit=&cursor=``: at most 100 items, after the item that ``cursor`` names."""

    model_config = ConfigDict(frozen=True)

    limit: Annotated[int, Field(ge=1, le=MAX_PAGE, description="How many items at most")] = 20
    cursor: Annotated[str | None, Field(max_length=512, description="`next_cursor` of the page before")] = None

    def after(self, key: type[Key]) -> Key | None:
        """The sort key that the cursor holds, validated as type ``key`` (a tuple type); ``None`` on the first page.

        Raises:
            MalformedCursor: it is not one of ours.
        """
        if self.cursor is None:
            return None
        try:
            raw = urlsafe_b64decode(self.cursor.encode("ascii") + b"=" * (-len(self.cursor) % 4))
            return TypeAdapter(key).validate_json(raw)
        except (ValidationError, Base64Error, UnicodeEncodeError, ValueError):
            raise malformed_cursor() from None


class Page(BaseModel, Generic[Item]):
    """Some of many items. ``next_cursor`` is ``null`` on the last page."""

    items: list[Item]
    next_cursor: str | None = None


def malformed_cursor() -> MalformedCursor:
    """The answer to a cursor that is not one of ours."""
    return MalformedCursor("Send `next_cursor` of the page before, unchanged")


def cursor_after(key: Sequence[object]) -> str:
    """The cursor that continues after the row with sort key ``key``."""
    return urlsafe_b64encode(TypeAdapter(list[object]).dump_json(list(key))).rstrip(b"=").decode("ascii")
