"""Strict JSON against the standard library and pydantic, with whatever hypothesis thinks of."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from microkit.web.problems import MalformedJson
from microkit.web.strict_json import check

ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)

text = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=10)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(
    scalars | text, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=20
)


@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_all_that_is_exact_passes_and_is_read_as_it_was_written(
    value: Any, ascii_only: bool, indent: int | None
) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    check(body, depth=40)
    assert ANYTHING.validate_json(body) == value


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda one: one.encode("utf-8", "surrogatepass")))
def test_no_bytes_raise_anything_but_a_problem(body: bytes) -> None:
    try:
        check(body, depth=32)
        ANYTHING.validate_json(body)
    except (MalformedJson, ValidationError):
        pass


@given(st.text('{}[]",:\\ \n0123456789.eE+-truefalsn', max_size=80))
def test_what_passes_is_what_the_standard_library_reads(body: str) -> None:
    try:
        check(body.encode(), depth=32)
        read = ANYTHING.validate_json(body)
    except (MalformedJson, ValidationError):
        return
    assert json.loads(body) == read


@given(st.integers(1, 80), st.integers(1, 60))
def test_depth_is_counted_in_brackets_outside_of_text(levels: int, most: int) -> None:
    body = b"[" * levels + b'"' + b"[{" * 40 + b'\\"[' + b'"' + b"]" * levels
    if levels <= most:
        check(body, depth=most)
    else:
        with pytest.raises(MalformedJson, match="deeper"):
            check(body, depth=most)


@pytest.mark.timeout(60)  # what is quadratic takes hours
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 32 + b'"' + b'\\"' * 400_000 + b"[",  # each quote might begin a text that never ends
        b'{"a":"' + b"\\" * 800_001,
        b'{"a":0.' + b"1" * 900_000 + b"}",
        b"[" + b'"\\u0000",' * 100_000 + b"1]",
    ],
)
def test_a_hostile_mebibyte_is_refused_in_one_pass(body: bytes) -> None:
    with pytest.raises(MalformedJson):
        check(body, depth=32)
