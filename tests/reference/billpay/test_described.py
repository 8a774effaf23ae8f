"""Every service of billpay answers as its OpenAPI document says, to whatever schemathesis makes of it.

``nox -s fuzz`` tries far more, in every phase and with a seed of the day: ``MICROKIT_FUZZ=full``.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.responses import JSONResponse

from microkit import ANYONE, Service, System
from microkit.auth import ServiceTokens
from microkit.gateway.filters import RateLimit
from microkit.testing.system import SystemUnderTest, run_system
from reference.billpay.system import system

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("described"),
]

ROOT = Path(__file__).parent.parent.parent.parent
FULL = os.environ.get("MICROKIT_FUZZ") == "full"
SHORT_FORM = ["--phases", "coverage,fuzzing", "--max-examples", "3"]
AGAIN = ["--phases", "fuzzing", "--max-examples", "3"]
"""For the gateway, whose document is made of the others'."""
FULL_FORM = ["--max-examples", "100"]
SETTINGS: dict[str, dict[str, object]] = {
    "ledger": {"close_interval": 0.1, "submit_timeout": 1.0},
    "user": {"registrations": 1_000_000, "address_attempts": 1000, "account_attempts": 100},
}


@dataclass(frozen=True)
class Fuzzed:
    """How one run of schemathesis ended."""

    passed: bool
    operations: int
    cases: int
    output: str


@dataclass(frozen=True)
class Described:
    """A running system, and tokens for whoever may call something in it."""

    urls: Mapping[str, str]
    tokens: Mapping[str, str]

    async def fuzz(self, service: str, folder: Path, *options: str, anonymous: bool = False) -> Fuzzed:
        """Runs the command that a person would run, with the project's own settings."""
        config = (ROOT / "schemathesis.toml").read_text()
        if anonymous:
            config = config.partition("[[operations]]")[0].replace("headers = ", "# headers = ")
        (folder / "schemathesis.toml").write_text(config)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{self.urls[service]}/openapi.json", *options),
            env={**os.environ, **self.tokens, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output = (await process.communicate())[0].decode(errors="replace")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        numbers = [re.search(pattern, output) for pattern in (r"Tested: (\d+)", r"(\d+) generated")]
        tested, cases = (int(found[1]) if found else 0 for found in numbers)
        return Fuzzed(process.returncode == 0, tested, cases, output)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def billpay(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Described]:
    with pytest.MonkeyPatch.context() as patch:
        # Thousands of requests in one name would be told to come back, and nothing would be tried.
        patch.setattr(RateLimit, "around", lambda _filter, inner, _tools: inner)
        async with run_system(system, tmp_path_factory.mktemp("described"), settings=SETTINGS) as running:
            yield Described(running.urls, await _tokens(running))


async def _tokens(running: SystemUnderTest) -> dict[str, str]:
    person = {"email": "amara@billpay.example", "name": "Amara", "password": "copper-lantern-47-reed"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{running.urls['user']}/users", json=person) as answer,
    ):
        subject = (await answer.json())["id"]
    service = running["payment"].parts.tokens
    assert isinstance(service, ServiceTokens)
    return {"FUZZ_TOKEN": running.token(subject, "member", "admin"), "FUZZ_SERVICE_TOKEN": service.token()}


def _form(service: str) -> list[str]:
    """With a seed of the day in the full form, which is told where something is found."""
    if FULL:
        return [*FULL_FORM, "--seed", str(int(time.time()) // 86_400)]
    return AGAIN if service == "gateway" else SHORT_FORM


@pytest.mark.parametrize(
    ("service", "operations"), [("user", 9), ("payment", 9), ("billing", 17), ("ledger", 8), ("gateway", 26)]
)
async def test_a_service_answers_as_its_document_says(
    service: str, operations: int, billpay: Described, tmp_path: Path
) -> None:
    ended = await billpay.fuzz(service, tmp_path, *_form(service))

    assert ended.passed, ended.output
    assert ended.operations == operations, f"another number of operations is described: {ended.output}"
    assert ended.cases >= 3 * operations, ended.output


@pytest.mark.parametrize("service", ["user", "payment", "billing", "ledger", "gateway"] if FULL else ["user"])
async def test_it_answers_so_to_whom_it_does_not_know(service: str, billpay: Described, tmp_path: Path) -> None:
    ended = await billpay.fuzz(service, tmp_path, *_form(service), anonymous=True)

    assert ended.passed, ended.output
    assert ended.cases > 50, ended.output


faulty = Service("faulty")


@faulty.get("/fault", allow=ANYONE)
async def fault() -> JSONResponse:
    raise RuntimeError("planted")


@faulty.get("/lie", allow=ANYONE)
async def lie() -> JSONResponse:
    return JSONResponse({"number": "one"})


@faulty.get("/door", allow=ANYONE)
async def door() -> JSONResponse:
    return JSONResponse({"number": 1})


@faulty.get("/openapi.json", allow=ANYONE)
async def described() -> JSONResponse:
    number = {"type": "object", "properties": {"number": {"type": "integer"}}}
    answers = {"200": {"description": "", "content": {"application/json": {"schema": number}}}}
    told: dict[str, Any] = {path: {"get": {"responses": answers}} for path in ("/fault", "/lie", "/door")}
    told["/door"]["get"]["security"] = [{"bearer": []}]
    schemes = {"bearer": {"type": "http", "scheme": "bearer"}}
    head = {"openapi": "3.1.0", "info": {"title": "Faulty", "version": "1"}}
    return JSONResponse({**head, "paths": told, "components": {"securitySchemes": schemes}})


async def test_a_fault_a_lie_and_an_open_door_are_found(tmp_path: Path) -> None:
    """Else the tests above would show nothing."""
    async with run_system(System("faulty", [faulty]), tmp_path) as running:
        anybody = {"FUZZ_TOKEN": "a-token", "FUZZ_SERVICE_TOKEN": "another"}
        ended = await Described(running.urls, anybody).fuzz("faulty", tmp_path, *AGAIN)

    assert not ended.passed
    for found in ("Server error", "Response violates schema", "API accepts requests without authentication"):
        assert found in ended.output, ended.output
