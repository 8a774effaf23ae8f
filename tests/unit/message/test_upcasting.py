"""Events of other versions than the reader's: older ones are brought up to date, newer ones are refused."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import ConfigDict

from microkit import Event, upcast
from microkit.errors import DefinitionError, UndecodableMessage
from microkit.message import Message

BILL = UUID("3fa85f64-5717-4562-b3fc-2c963f66afa6")


class BillPaid(Event, topic="billing.bills", key="bill_id", version=3):
    bill_id: UUID
    cents: int
    currency: str

    @upcast(from_version=2)
    @staticmethod
    def with_currency(payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "currency": "EUR"}

    @upcast(from_version=1)
    @staticmethod
    def in_cents(payload: dict[str, Any]) -> dict[str, Any]:
        return {"bill_id": payload["bill_id"], "cents": Decimal(payload["amount"]).scaleb(2)}


def envelope(payload: object, version: str | None) -> Message:
    value = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    headers = {"ce_id": "7", "ce_type": BillPaid.event_type}
    return Message(
        "billing.bills", "1", value, headers if version is None else {**headers, "ce_schemaversion": version}
    )


def refused(message: Message, event: type[Event] = BillPaid) -> tuple[str, str]:
    with pytest.raises(UndecodableMessage) as caught:
        event.from_message(message)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize(
    ("version", "payload"),
    [
        ("1", {"bill_id": str(BILL), "amount": "12.50"}),
        (None, {"bill_id": str(BILL), "amount": "12.50"}),
        ("2", {"bill_id": str(BILL), "cents": 1250}),
        ("3", {"bill_id": str(BILL), "cents": 1250, "currency": "EUR"}),
        ("03", {"bill_id": str(BILL), "cents": 1250, "currency": "EUR"}),
    ],
)
def test_an_event_of_each_version_is_read_as_the_newest(version: str | None, payload: dict[str, Any]) -> None:
    assert BillPaid.from_message(envelope(payload, version)) == BillPaid(bill_id=BILL, cents=1250, currency="EUR")


def test_an_event_travels_with_its_version() -> None:
    message = BillPaid(bill_id=BILL, cents=1, currency="EUR").to_message("billing")

    assert message.headers["ce_schemaversion"] == "3"
    assert BillPaid.from_message(message).cents == 1


def test_what_an_upcaster_returns_is_validated() -> None:
    reason, detail = refused(envelope({"bill_id": "no uuid", "amount": "1"}, "1"))

    assert reason == "invalid-payload"
    assert detail.startswith("BillPaid at bill_id: ")


@pytest.mark.parametrize(
    ("payload", "version", "reason", "told"),
    [
        ({}, "4", "newer-version", "billing.bills.BillPaid has version 4; this service knows 3"),
        ({}, "0", "older-version", "billing.bills.BillPaid has version 0; this service reads 1 and newer"),
        ({}, "1.0", "bad-version", "ce_schemaversion '1.0' is not a number"),
        ({}, "-1", "bad-version", "ce_schemaversion '-1' is not a number"),
        ({}, "²", "bad-version", "ce_schemaversion '²' is not a number"),
        ({}, "", "bad-version", "ce_schemaversion '' is not a number"),
        ({"amount": "1"}, "1", "upcast-failed", "BillPaid from version 1: KeyError: 'bill_id'"),
        ([1], "1", "invalid-payload", "BillPaid: the payload is no JSON object"),
        (b"{", "1", "not-json", "BillPaid: EOF while parsing an object at line 1 column 1"),
        (b"\xff", "2", "not-json", "BillPaid: expected value at line 1 column 1"),
        (b"[" * 200_000, "1", "not-json", "BillPaid: recursion limit exceeded at line 1 column 202"),
    ],
)
def test_what_cannot_be_read_says_why(payload: object, version: str, reason: str, told: str) -> None:
    assert refused(envelope(payload, version)) == (reason, told)


def test_an_older_version_without_upcaster_is_refused() -> None:
    class Moved(Event, topic="billing.bills", key="bill_id", version=2):
        bill_id: str

    reason, detail = refused(envelope({"bill_id": "1"}, "1"), Moved)

    assert (reason, detail) == ("older-version", "billing.bills.Moved has version 1; this service reads 2 and newer")


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "Odd from version 1: it returned no dict but NoneType"),
        ({"bill_id": object()}, "Odd from version 1: Unable to serialize unknown type: <class 'object'>"),
    ],
)
def test_an_upcaster_that_returns_no_payload_is_told(returned: Any, told: str) -> None:
    class Odd(Event, topic="billing.bills", key="bill_id", version=2):
        bill_id: str

        @upcast(from_version=1)
        @staticmethod
        def same(payload: dict[str, Any]) -> dict[str, Any]:
            found: dict[str, Any] = returned
            return found

    assert refused(envelope({"bill_id": "1"}, "1"), Odd) == ("upcast-failed", told)


def test_a_field_that_the_reader_does_not_know_is_ignored() -> None:
    newer = {"bill_id": str(BILL), "cents": 1250, "currency": "EUR", "note": "added in the same major version"}

    assert BillPaid.from_message(envelope(newer, "3")).cents == 1250


def test_an_event_that_forbids_extra_fields_is_refused() -> None:
    with pytest.raises(DefinitionError, match="Strict: an event cannot forbid extra fields"):

        class Strict(Event, topic="billing.bills", key="bill_id"):
            model_config = ConfigDict(extra="forbid")
            bill_id: str


def test_a_gap_between_upcasters_is_refused() -> None:
    with pytest.raises(
        DefinitionError,
        match="Gappy has an upcaster from version 1 and none from version 2, so nothing leads to version 4. "
        r"Write one with @upcast\(from_version=2\)",
    ):

        class Gappy(Event, topic="billing.bills", key="bill_id", version=4):
            bill_id: str

            @upcast(from_version=1)
            @staticmethod
            def first(payload: dict[str, Any]) -> dict[str, Any]:
                return payload

            @upcast(from_version=3)
            @staticmethod
            def third(payload: dict[str, Any]) -> dict[str, Any]:
                return payload


@pytest.mark.parametrize("version", [0, 2, 3])
def test_an_upcaster_from_no_older_version_is_refused(version: int) -> None:
    with pytest.raises(DefinitionError, match=rf"Early\.ahead reads version {version}, which is not older than .* 2"):

        class Early(Event, topic="billing.bills", key="bill_id", version=2):
            bill_id: str

            @upcast(from_version=version)
            @staticmethod
            def ahead(payload: dict[str, Any]) -> dict[str, Any]:
                return payload


def test_two_upcasters_from_one_version_are_refused() -> None:
    with pytest.raises(DefinitionError, match="Twice has two upcasters from version 1; second is the second"):

        class Twice(Event, topic="billing.bills", key="bill_id", version=2):
            bill_id: str

            @upcast(from_version=1)
            @staticmethod
            def first(payload: dict[str, Any]) -> dict[str, Any]:
                return payload

            @upcast(from_version=1)
            @staticmethod
            def second(payload: dict[str, Any]) -> dict[str, Any]:
                return payload


def test_a_version_below_one_is_refused() -> None:
    with pytest.raises(DefinitionError, match="versions are counted from 1, so 0 is none"):

        class None_(Event, topic="billing.bills", key="bill_id", version=0):  # noqa: N801
            bill_id: str
