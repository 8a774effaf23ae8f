"""Values that show what a schema takes: the schema's own models accept them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from microkit.web.sample import Schemas, sample, type_of
from reference.billpay.contracts.billing import Reservation
from reference.billpay.contracts.payment import NewPayment
from reference.billpay.contracts.user import Credentials, NewUser, RoleChange


@pytest.mark.parametrize("model", [NewUser, Credentials, NewPayment, Reservation])
def test_a_sample_fits_its_model(model: type[BaseModel]) -> None:
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    shown = sample(schema, Schemas({"components": {"schemas": schema.pop("$defs", {})}}))
    model.model_validate(shown)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "integer"),
        (int | None, "integer or null"),
        (list[str], "list of string"),
        (RoleChange, "object"),
        (dict[str, Any], "object"),
    ],
)
def test_a_type_is_said_in_a_word_or_two(annotation: Any, words: str) -> None:
    assert type_of(TypeAdapter(annotation).json_schema(), Schemas({})) == words
