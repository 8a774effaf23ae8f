"""Where decimals stand in a type."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, NewType, Optional

import pytest
from pydantic import AliasChoices, BaseModel, Field

from microkit.web.schema import decimal_fields, types_within
from reference.billpay.contracts.billing import NewBill


class Line(BaseModel):
    price: Annotated[Decimal, Field(gt=0)]
    discount: Decimal | None = None
    tax: Optional[Decimal] = None  # noqa: UP045  the old spelling is the same type


class Order(BaseModel):
    lines: list[Line]
    by_name: dict[str, Line] = {}
    total: Decimal = Field(alias="sum")
    parent: Order | None = None


class Listed(BaseModel):
    prices: list[Decimal]


class Beside(BaseModel):
    price: Decimal | str


class Chosen(BaseModel):
    price: Decimal = Field(validation_alias=AliasChoices("price", "cost"))


@dataclass
class Plain:
    price: Decimal


Money = NewType("Money", Decimal)


class Renamed(BaseModel):
    price: Money


@pytest.mark.parametrize(
    ("annotation", "names"),
    [
        (Line, ["discount", "price", "tax"]),
        (Order, ["discount", "price", "sum", "tax", "total"]),
        (list[Order], ["discount", "price", "sum", "tax", "total"]),
        (NewBill, ["amount"]),
        (Listed, None),
        (Beside, None),
        (Chosen, None),
        (Plain, None),
        (Renamed, None),
        (Decimal, None),
        (list[Decimal], None),
        (dict[str, Decimal | Line], None),
    ],
)
def test_the_names_of_decimals_are_known_or_said_to_be_unknown(annotation: Any, names: list[str] | None) -> None:
    assert decimal_fields(annotation) == names


def test_types_are_found_through_models_aliases_and_arguments() -> None:
    assert {Order, Line, Decimal, str} <= set(map(_hashable, types_within(list[Order])))


def _hashable(kind: Any) -> Any:
    return kind if isinstance(kind, type) else repr(kind)
