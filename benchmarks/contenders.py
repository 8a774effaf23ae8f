"""The applications that ``benchmarks.http`` compares: two endpoints, as each framework's documentation writes them.

"Full" means: an OpenTelemetry SDK span for each request to a batch processor whose exporter throws them away, a
Prometheus histogram by method, route and status, and one JSON line in the access log with the trace's id, written to
``/dev/null``. microkit has more on, because it cannot be had without: deadline, caller's identity, limits, strict JSON.

microkit's spans come from its own tracer, as they do in a service with ``trace_exporter=otlp``, and go to the SDK's
batch processor and the same exporter; ``microkit_sdk`` is given the SDK's tracer provider instead, as the others are.
"""
# ruff: noqa: PLC0415  a contender's process loads what that contender needs and nothing else

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import orjson
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter

from microkit.auth.principal import Principal

App = Callable[..., Awaitable[None]]
Message = MutableMapping[str, Any]


class NewBill(BaseModel):
    model_config = ConfigDict(extra="forbid")

    payee: str
    reference: str
    amount: Decimal
    due_at: AwareDatetime


class Bill(BaseModel):
    id: UUID
    payee: str
    reference: str
    amount: Decimal
    due_at: AwareDatetime
    paid: bool


EXAMPLE = {
    "payee": "Lagos Water",
    "reference": "INV-2026-0117",
    "amount": "12.50",
    "due_at": "2026-12-01T00:00:00Z",
}
BODY = orjson.dumps(EXAMPLE)
BILL_ID = UUID("6f1c0d1e-9a3b-4c55-8c2a-5d0f4b1e7a90")


def made(body: NewBill) -> Bill:
    return Bill(
        id=uuid4(), payee=body.payee, reference=body.reference, amount=body.amount, due_at=body.due_at, paid=False
    )


def found(bill_id: UUID) -> Bill:
    return Bill(
        id=bill_id,
        payee="Lagos Water",
        reference="INV-2026-0117",
        amount=Decimal("12.50"),
        due_at=TypeAdapter(AwareDatetime).validate_python("2026-12-01T00:00:00Z"),
        paid=False,
    )


_FOUND = found(BILL_ID)


# Room for all contenders' spans alike: what is dropped with a warning would be another measurement.
os.environ["OTEL_BSP_MAX_QUEUE_SIZE"] = "65536"


class Nowhere(SpanExporter):
    """Throws spans away, so that the exporter's own cost is in nobody's figure."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def provider(sampling: float) -> TracerProvider:
    made_provider = TracerProvider(sampler=ParentBasedTraceIdRatio(sampling), shutdown_on_exit=False)
    made_provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return made_provider


def starlette_bare(sampling: float) -> App:
    """The floor: Starlette, with pydantic called by hand."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    new_bill, bill = TypeAdapter(NewBill), TypeAdapter(Bill)

    async def create(request: Request) -> Response:
        body = new_bill.validate_json(await request.body())
        return Response(bill.dump_json(made(body)), 201, media_type="application/json")

    async def read(request: Request) -> Response:
        UUID(request.path_params["bill_id"])
        return Response(bill.dump_json(_FOUND), media_type="application/json")

    return Starlette(routes=[Route("/bills", create, methods=["POST"]), Route("/bills/{bill_id}", read)])


class AccessLog:
    """One JSON line a request by structlog, as pure ASGI middleware."""

    def __init__(self, app: App) -> None:
        import structlog

        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso"),
                structlog.processors.JSONRenderer(serializer=orjson.dumps),
            ],
            logger_factory=structlog.BytesLoggerFactory(open(os.devnull, "wb")),  # noqa: SIM115  as long as the process
            cache_logger_on_first_use=True,
        )
        self._app = app
        self._log = structlog.get_logger()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self._app(scope, receive, watched)
        context = trace.get_current_span().get_span_context()
        self._log.info(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            duration_ms=round((time.perf_counter() - began) * 1000, 3),
            client=scope["client"][0],
            trace_id=f"{context.trace_id:032x}",
            span_id=f"{context.span_id:016x}",
        )


def starlette_full(sampling: float) -> App:
    """Starlette with OpenTelemetry's ASGI middleware, starlette_exporter and the access log."""
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from starlette.applications import Starlette
    from starlette_exporter import PrometheusMiddleware

    app = starlette_bare(sampling)
    assert isinstance(app, Starlette)
    app.add_middleware(AccessLog)
    app.add_middleware(PrometheusMiddleware, app_name="bench", group_paths=True)
    return OpenTelemetryMiddleware(app, tracer_provider=provider(sampling))


def _fastapi() -> Any:
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/bills", status_code=201)
    async def create(body: NewBill) -> Bill:
        return made(body)

    @app.get("/bills/{bill_id}")
    async def read(bill_id: UUID) -> Bill:
        return _FOUND

    return app


def fastapi_bare(sampling: float) -> App:
    app: App = _fastapi()
    return app


def fastapi_full(sampling: float) -> App:
    """FastAPI with its OpenTelemetry instrumentation, prometheus-fastapi-instrumentator and the access log."""
    return _fastapi_full(sampling, None)


def fastapi_full_lean(sampling: float) -> App:
    """The same without the spans for each ASGI message, which its instrumentation makes unless told otherwise."""
    return _fastapi_full(sampling, ["receive", "send"])


def _fastapi_full(sampling: float, exclude_spans: Any) -> App:
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
    from prometheus_client import CollectorRegistry
    from prometheus_fastapi_instrumentator import Instrumentator

    app = _fastapi()
    app.add_middleware(AccessLog)
    Instrumentator(registry=CollectorRegistry()).instrument(app)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=provider(sampling), exclude_spans=exclude_spans)
    whole: App = app
    return whole


def _litestar(**options: Any) -> App:
    from litestar import Litestar, get, post

    @post("/bills", sync_to_thread=False)
    async def create(data: NewBill) -> Bill:
        return made(data)

    @get("/bills/{bill_id:uuid}", sync_to_thread=False)
    async def read(bill_id: UUID) -> Bill:
        return _FOUND

    app: App = Litestar(route_handlers=[create, read], **options)
    return app


def litestar_bare(sampling: float) -> App:
    return _litestar(logging_config=None, openapi_config=None)


def litestar_full(sampling: float) -> App:
    """Litestar with its OpenTelemetry and Prometheus plugins and the access log."""
    from litestar.plugins.opentelemetry import OpenTelemetryConfig, OpenTelemetryPlugin
    from litestar.plugins.prometheus import PrometheusConfig

    config = OpenTelemetryConfig(tracer_provider=provider(sampling))
    middleware: list[Any] = [PrometheusConfig(group_path=True).middleware, AccessLog]
    return _litestar(
        logging_config=None, openapi_config=None, plugins=[OpenTelemetryPlugin(config)], middleware=middleware
    )


def microkit(sampling: float) -> App:
    """microkit, with everything that it has."""
    from microkit.telemetry.otlp import SendingProvider

    return _microkit(SendingProvider("billing", "", sampling, Nowhere()))


def microkit_sdk(sampling: float) -> App:
    """The same, with the SDK's tracer."""
    return _microkit(provider(sampling))


def _microkit(tracer_provider: trace.TracerProvider) -> App:
    from microkit.contract import Contract, get, post
    from microkit.telemetry import Telemetry
    from microkit.telemetry.logs import configure
    from microkit.web import Surface, WebApp

    class Billing(Contract, service="billing", prefix="/bills", allow="member"):
        @post("", status=201)
        async def create(self, body: NewBill) -> Bill: ...

        @get("/{bill_id}")
        async def read(self, bill_id: UUID) -> Bill: ...

    async def create(body: NewBill, caller: Principal) -> Bill:
        assert caller.subject
        return made(body)

    async def read(bill_id: UUID, caller: Principal) -> Bill:
        assert caller.subject
        return _FOUND

    known = {"t" * 300: Principal("6f1c0d1e", frozenset({"member"}), "t" * 300)}

    async def verify(token: str) -> Principal:
        return known[token]  # what the verifier does with a token that it has seen before

    configure(open(os.devnull, "w"), format="json")  # noqa: SIM115  as long as the process
    surface = Surface("billing", operations=[(Billing.create, create), (Billing.read, read)])
    return WebApp(surface, telemetry=Telemetry("billing", provider=tracer_provider), verify=verify)


CONTENDERS: dict[str, Callable[[float], App]] = {
    one.__name__: one
    for one in (
        starlette_bare,
        fastapi_bare,
        litestar_bare,
        starlette_full,
        litestar_full,
        fastapi_full,
        fastapi_full_lean,
        microkit,
        microkit_sdk,
    )
}
