"""Durations and sizes as people write them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from microkit.settings import Duration, Size
from microkit.settings.quantities import in_units
from microkit.settings.quantities import seconds as read_seconds
from microkit.settings.quantities import size as read_size

DURATION = TypeAdapter[float](Duration)
SIZE = TypeAdapter[int](Size)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        *[("250ms", 0.25), ("30s", 30.0), ("5m", 300.0), ("2h", 7200.0), ("1d", 86400.0), ("100us", 0.0001)],
        *[("1h30m", 5400.0), ("1.5s", 1.5), (" 30s ", 30.0), ("30 s", 30.0), ("30", 30.0), ("0", 0.0), ("0.5", 0.5)],
        *[(3, 3.0), (0.25, 0.25), (timedelta(minutes=2), 120.0)],
    ],
)
def test_a_duration_is_read_in_seconds(written: Any, seconds: float) -> None:
    assert DURATION.validate_python(written) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    [
        *[
            "",
            "s",
            "nan",
            "NaN",
            "inf",
            "-inf",
            "infinity",
            "-1s",
            "-1",
            "1x",
            "1s2",
            "1 000s",
            "1e3",
            "0x10s",
            "\uff11s",
        ],
        *[
            float("nan"),
            float("inf"),
            -1,
            -0.5,
            True,
            None,
            [],
            timedelta(seconds=-1),
            b"1s",
            "9" * 400,
            "1" * 16 + "s",
        ],
    ],
)
def test_what_is_no_duration_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError):
        DURATION.validate_python(written)


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        *[("1MiB", 1048576), ("64KiB", 65536), ("1GiB", 2**30), ("10MB", 10_000_000), ("1kB", 1000), ("1.5KiB", 1536)],
        *[("512", 512), ("512B", 512), ("1 mib", 1048576), (0, 0), (7, 7), ("0", 0)],
    ],
)
def test_a_size_is_read_in_bytes(written: Any, amount: int) -> None:
    assert SIZE.validate_python(written) == amount


@pytest.mark.parametrize(
    "written", ["", "MiB", "1.5", "1.0001KB", "-1", "1 M iB", "1XB", "1e6", "nan", -1, True, None, 1.0, b"1"]
)
def test_what_is_no_size_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError):
        SIZE.validate_python(written)


@given(st.one_of(st.text(max_size=12), st.from_regex(r"[0-9.\-+ ]{0,6}(ms|us|s|m|h|d|KiB|MB)?", fullmatch=True)))
def test_any_text_is_either_a_finite_amount_or_refused(text: str) -> None:
    for read in (read_seconds, read_size):
        try:
            amount = read(text)
        except ValueError:
            continue
        assert 0 <= amount < 10**30


@given(st.integers(min_value=0, max_value=10**9))
def test_an_amount_is_shown_so_that_it_reads_as_the_same(amount: int) -> None:
    from microkit.settings import ServiceSettings  # noqa: PLC0415  the rules of real fields

    fields = ServiceSettings.model_fields
    shown = in_units(amount, fields["body_limit"].metadata)
    assert shown is not None
    assert read_size(shown) == amount
    shown = in_units(amount / 8, fields["request_timeout"].metadata)
    assert shown is not None
    assert read_seconds(shown) == pytest.approx(amount / 8, rel=1e-5)
