"""No secret is in anything that a running billpay tells: everything that it told is searched.

The services run as ``microkit up`` runs them, in a process of its own, with every line that there is (DEBUG). What is
used against them, rightly and wrongly, is remembered, and looked for in their output, in traces and events, at the
admin endpoints, in problem documents and in the databases.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from stellar_sdk import Keypair

from microkit.servers.ports import free_ports
from reference.billpay.contracts.ledger import DEMO_PROVIDERS
from tests.reference.billpay.leaks import Leaks

ROOT = Path(__file__).parent.parent.parent.parent
SERVICES = ("gateway", "user", "payment", "billing", "ledger")
SYSTEM = "reference.billpay.system:system"


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Watched:
    """A running billpay, what was used against it, and what it told."""

    folder: Path
    urls: Mapping[str, str]
    console: str
    leaks: Leaks = field(default_factory=Leaks)
    told: dict[str, bytes] = field(default_factory=dict)

    def ask(self, method: str, url: str, *, body: Any = None, **headers: str) -> Answer:
        """Asks the gateway, or a whole URL, and keeps the answer as told where it is a problem."""
        target = urlsplit(url if "://" in url else self.urls["gateway"] + url)
        connection = HTTPConnection(target.hostname or "", target.port, timeout=30)
        path = target.path + (f"?{target.query}" if target.query else "")
        sent = body if isinstance(body, bytes) else None if body is None else json.dumps(body)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, sent, {"Content-Type": "application/json", **given})
        answer = connection.getresponse()
        found = Answer(answer.status, answer.read())
        connection.close()
        if found.status >= 400:
            self.told[f"the answer to {method} {target.path} ({found.status}, {len(self.told)})"] = found.body
        return found

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(600):
            if condition():
                return
            time.sleep(0.1)
        raise AssertionError("it did not come to pass within a minute")


class Collector(BaseHTTPRequestHandler):
    """Takes spans as an OpenTelemetry collector does."""

    spans = b""

    def do_POST(self) -> None:
        Collector.spans += self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def collector() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def command(*arguments: str, folder: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "microkit.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextmanager
def up(folder: Path, leaks: Leaks, collected: str) -> Iterator[Watched]:
    """Everything is logged; one service exports its spans; the gateway's stores are away, and their URLs hold
    passwords."""
    ports = free_ports(len(SERVICES) + 1)
    env = {f"{name.upper()}_PORT": str(port) for name, port in zip(SERVICES, ports, strict=False)}
    env |= {f"{name.upper()}_LOG_LEVEL": "DEBUG" for name in SERVICES}
    env |= {f"{name.upper()}_ADMIN_PORT": "0" for name in SERVICES}
    env |= {"USER_TRACE_EXPORTER": "otlp", "USER_OTLP_ENDPOINT": collected, "LEDGER_CLOSE_INTERVAL": "0.2"}
    env["GATEWAY_RATE_LIMIT_URL"] = (
        f"redis://:{leaks.keep('the password of a store', secrets.token_hex(12))}@127.0.0.1:1/0"
    )
    process = command(
        "up", SYSTEM, "--json", "--seed", "--folder", "kept", "--console-port", str(ports[-1]), folder=folder, env=env
    )
    assert process.stdout is not None
    assert process.stderr is not None
    lines: list[bytes] = []
    reading = threading.Thread(target=lines.extend, args=[process.stderr])
    reading.start()
    try:
        first = process.stdout.readline()
        assert first, b"".join(lines).decode()
        announced = json.loads(first)
        for email, password in announced.pop("credentials").items():
            leaks.keep(f"the password of {email}", password)
        urls = {service["name"]: service["url"] for service in announced["services"]}
        watched = Watched(folder / "kept", urls, announced["console"], leaks)
        watched.told["what was announced"] = json.dumps(announced).encode()
        yield watched
        process.send_signal(signal.SIGTERM)
        watched.told["stdout"] = process.stdout.read()
        assert process.wait(60) == 0
        reading.join()
        watched.told["the log"] = b"".join(lines)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        reading.join()
        process.stdout.close()
        process.stderr.close()


def people_come_and_go(watched: Watched) -> str:
    """Accounts, log-ins right and wrong, sessions used twice; returns an access token."""
    leaks, ask = watched.leaks, watched.ask
    password = leaks.keep("a password", f"{secrets.token_hex(6)}-plum-Ärger")
    person = {"email": "ngozi@billpay.example", "name": "Ngozi", "password": password}
    key = leaks.keep("an idempotency key", secrets.token_hex(16))
    assert ask("POST", "/api/users", body=person, Idempotency_Key=key).status == 201
    weak = {**person, "password": leaks.keep("a weak password", "1q2w3e4r5t")}
    assert ask("POST", "/api/users", body=weak).status == 422
    misplaced = {**person, "pass_word": leaks.keep("a password in a field that is none", secrets.token_hex(10))}
    assert ask("POST", "/api/users", body=misplaced).status == 422
    assert ask("POST", "/api/users", body={**person, "password": [password]}).status == 422
    assert ask("POST", "/api/users", body=json.dumps(person).encode()[:-3]).status == 400
    wrong = leaks.keep("a wrong password", secrets.token_urlsafe(18))
    for _ in range(2):
        assert ask("POST", "/api/sessions", body={"email": person["email"], "password": wrong}).status == 401
    tokens = ask("POST", "/api/sessions", body={"email": person["email"], "password": password}).document
    access, refresh = leaks.keep("an access token", tokens["access_token"]), tokens["refresh_token"]
    leaks.keep("a refresh token", refresh)
    renewed = ask("POST", "/api/sessions/refresh", body={"refresh_token": refresh}).document
    leaks.keep("a rotated refresh token", renewed["refresh_token"])
    leaks.keep("a second access token", renewed["access_token"])
    assert ask("POST", "/api/sessions/refresh", body={"refresh_token": refresh}).status == 401
    garbage = leaks.keep("a refresh token that is none", secrets.token_urlsafe(32))
    assert ask("POST", "/api/sessions/refresh", body={"refresh_token": garbage}).status == 401
    return access


def tokens_are_refused(watched: Watched, token: str) -> None:
    """Tokens that are none, where they belong and where they do not."""
    leaks, ask, billing = watched.leaks, watched.ask, watched.urls["billing"]
    forged = leaks.keep("a forged token", token[:-12] + secrets.token_urlsafe(9)[:12])
    basic = leaks.keep("a password for Basic", secrets.token_urlsafe(16))
    opaque = leaks.keep("an opaque token", secrets.token_urlsafe(24))
    cookie = leaks.keep("a cookie", secrets.token_urlsafe(24))
    for url in ("/api/bills", f"{billing}/bills"):
        assert ask("GET", url, Authorization=f"Bearer {forged}").status == 401
        assert ask("GET", url, Authorization=f"Basic {b64encode(f'ngozi:{basic}'.encode()).decode()}").status == 401
        assert ask("GET", url, Authorization=opaque).status == 401
        assert ask("GET", url, Cookie=f"session={cookie}", X_Api_Key=opaque).status == 401
        in_url = f"{url}?access_token={token}&password={opaque}"
        assert ask("GET", in_url, Authorization=f"Bearer {token}").status == 422
    assert ask("GET", f"/api/{opaque}/nothing").status == 404
    assert ask("BREW", "/api/bills", Authorization=f"Bearer {token}").status in {400, 405}
    del leaks.secrets["an opaque token"]  # it was in a path, which logs and traces name
    assert (
        ask("GET", "/api/bills?limit=100", Authorization=f"Bearer {token}", Proxy_Authorization=f"Basic {basic}").status
        == 200
    )


def bills_are_paid(watched: Watched, token: str) -> None:
    """A payment that is settled, and requests with keys and seeds in places where they are refused."""
    leaks, ask = watched.leaks, watched.ask
    bearer = f"Bearer {token}"
    assert ask("POST", "/api/payments/wallet", Authorization=bearer).status == 201
    bill = {"provider": "Lagos Water", "reference": "INV-2026-0117", "amount": "12.5", "due_at": "2099-01-01T00:00:00Z"}
    payee = DEMO_PROVIDERS["Lagos Water"]
    key = leaks.keep("an idempotency key of a bill", secrets.token_hex(16))
    made = ask("POST", "/api/bills", body={**bill, "payee": payee}, Authorization=bearer, Idempotency_Key=key)
    assert made.status == 201
    other = {**bill, "payee": payee, "amount": "13"}
    assert ask("POST", "/api/bills", body=other, Authorization=bearer, Idempotency_Key=key).status == 422
    seed = leaks.keep("a seed in the place of an address", Keypair.random().secret)
    assert ask("POST", "/api/bills", body={**bill, "payee": seed}, Authorization=bearer).status == 422
    payment = ask("POST", "/api/payments", body={"bill_id": made.document["id"]}, Authorization=bearer).document
    url = f"/api/payments/{payment['id']}"
    watched.until(lambda: ask("GET", url, Authorization=bearer).document["status"] == "settled")


def all_that_is_told(watched: Watched) -> None:
    """What operators read: the console's pages, the admin endpoints, and the files."""
    note = json.loads((watched.folder / "up.json").read_text())
    pages = {"console": [watched.console + path for path in ("/services", "/traces", "/events", "/sagas")]}
    admin = ("/info", "/health", "/metrics", "/pool", "/breakers", "/endpoints", "/sagas", "/outbox", "/consumers")
    for name, url in note["admin"].items():
        pages[f"admin of {name}"] = [url + path for path in admin]
    for name, url in watched.urls.items():
        pages[name] = [url + path for path in ("/health", "/openapi.json", "/metrics")]
    for who, urls in pages.items():
        for url in urls:
            watched.told[f"{who} {urlsplit(url).path}"] = watched.ask("GET", url).body
    traces = watched.ask("GET", f"{watched.console}/traces").document["traces"]
    assert len(traces) > 10
    for trace in traces:
        identity = trace["trace_id"]
        watched.told[f"trace {identity}"] = watched.ask("GET", f"{watched.console}/traces/{identity}").body
    demo = command("demo", SYSTEM, "--folder", "kept", folder=watched.folder.parent, env={})
    watched.told["the demo"], watched.told["the demo's errors"] = demo.communicate(timeout=120)
    assert demo.returncode == 0, watched.told


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_no_secret_is_in_anything_that_a_running_system_tells(tmp_path: Path) -> None:
    leaks = Leaks()
    with collector() as collected, up(tmp_path, leaks, collected) as watched:
        token = people_come_and_go(watched)
        tokens_are_refused(watched, token)
        bills_are_paid(watched, token)
        all_that_is_told(watched)
    told = {**watched.told, "exported spans": Collector.spans}
    for name, kept in json.loads((watched.folder / "service-keys.json").read_text())["private"].items():
        leaks.keep(f"the key of {name}", json.loads(kept)["d"])
    (wallet_key,) = watched.folder.glob("*.wallet-key")
    leaks.keep("the key of wallets", wallet_key.read_text().strip())

    assert leaks.found(told) == []
    log = told["the log"]
    assert all(f'"service":"{name}"'.encode() in log for name in SERVICES), "each service wrote something"
    assert b'"DEBUG"' in told["admin of user /info"], "every line that there is was written"
    assert log.count(b"/api/sessions") >= 6, "the log tells of log-ins"
    assert b"POST /sessions" in told["exported spans"], "the spans tell of log-ins"
    assert any(b"POST /bills" in text for where, text in told.items() if where.startswith("trace"))
    assert len(leaks.secrets) >= 22
    _none_is_kept(watched, leaks)


def _none_is_kept(watched: Watched, leaks: Leaks) -> None:
    """In the databases neither, except for what belongs there: hashes of passwords, keys of requests, and in
    development the keys that sign access tokens."""
    belongs = {"an idempotency key", "an idempotency key of a bill"}
    never = Leaks({what: secret for what, secret in leaks.secrets.items() if what not in belongs})
    files = {path.name: path.read_bytes() for path in watched.folder.glob("*.db*")}
    assert {f"{name}.db" for name in SERVICES if name != "gateway"} <= files.keys()
    in_files = [leak for leak in never.found(files) if not leak.startswith(("a password's hash", "a private JWK"))]
    assert in_files == []
    assert b"$argon2id$" in b"".join(files.values()), "the search reads what is kept"


def test_a_url_that_does_not_work_is_told_without_its_password(tmp_path: Path) -> None:
    leaks = Leaks()
    password = leaks.keep("the password of a database", secrets.token_hex(12))
    env = {
        "BILLING_DATABASE_URL": f"postgresql+asyncpg://billing:{password}@127.0.0.1:1/billing",
        "BILLING_LOG_LEVEL": "DEBUG",
        "BILLING_LOG_FORMAT": "console",
        "BILLING_PORT": str(free_ports(1)[0]),
    }
    commands = {"run": ("run", "billing"), "doctor": ("doctor", "billing"), "config": ("config", "show", "billing")}
    commands["config as JSON"] = (*commands["config"], "--json")
    running = {name: command(*one, "--system", SYSTEM, folder=tmp_path, env=env) for name, one in commands.items()}
    told = {name: b"".join(process.communicate(timeout=60)) for name, process in running.items()}

    assert leaks.found(told) == []
    for name in ("run", "doctor", "config as JSON"):
        assert b"billing:***@127.0.0.1:1" in told[name], told[name]


def test_what_is_planted_is_found() -> None:
    leaks = Leaks()
    secret = leaks.keep("a password", "lantern-47-reed-Ä")
    seed = Keypair.random().secret
    planted = {
        "plain": f'{{"message":"tried {secret}"}}',
        "in a URL": "GET /x?p=lantern-47-reed-%C3%84",
        "in Basic": b64encode(f"ngozi:{secret}".encode()).decode(),
        "a token": f"Bearer eyJhbGciOiJFZERTQSJ9xx.{'eyJzdWIiOiJhbWFyYSJ9'}.{secrets.token_urlsafe(48)}",
        "a seed": f"wallet {seed} opened",
        "a hash": "$argon2id$v=19$m=19456",
    }
    for where, text in planted.items():
        assert len(leaks.found({where: text.encode(), "elsewhere": b"nothing at all"})) == 1, where
