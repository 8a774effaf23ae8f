"""What stands behind the ? of a database's URL reaches the driver as libpq means it, or is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from microkit.db.engines import Limits, make
from microkit.errors import ConfigurationError


def given_to_driver(query: str) -> dict[str, Any]:
    made = make(f"postgresql://u:p@h/d?{query}", Limits(5, 30.0, 5.0), application="test")
    _, found = made.write.dialect.create_connect_args(made.write.url)
    options = dict(found)
    assert (options.pop("host"), options.pop("user"), options.pop("database")) == ("h", "u", "d")
    assert options.pop("password") == "p"
    assert made.where == f"postgresql+asyncpg://u:***@h/d?{query}"
    return options


def test_what_is_libpq_s_is_passed_on_as_a_url_and_the_rest_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "root.pem"
    root.touch()
    assert given_to_driver("sslmode=require") == {"dsn": "postgresql://?sslmode=require"}
    assert given_to_driver("ssl=require&sslmode=prefer") == {"ssl": "require", "dsn": "postgresql://?sslmode=prefer"}
    given = given_to_driver(f"sslmode=verify-full&sslrootcert={str(root).replace('/', '%2F')}")
    assert given == {"dsn": f"postgresql://?sslmode=verify-full&sslrootcert={str(root).replace('/', '%2F')}"}
    assert given_to_driver("prepared_statement_cache_size=0") == {"prepared_statement_cache_size": 0}


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("channel_binding=require", "the database URL has the parameter 'channel_binding': leave it out; the driver"),
        ("application_name=x", "leave it out; it is the service's name"),
        ("connect_timeout=3", "leave it out; a connection has ten seconds to be opened"),
        ("sslmod=require", "parameter 'sslmod': leave it out; sslmode and sslrootcert are such as may stand there"),
        ("sslmode=verify-ca&sslrootcert=%2Fnowhere.pem", "has sslrootcert=/nowhere.pem: there is no such file"),
    ],
)
def test_what_nobody_would_read_is_refused(query: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        given_to_driver(query)
    assert told in str(caught.value)
