"""The page that shows an OpenAPI document to a person: one HTML text that needs nothing else, from nowhere."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

from microkit.web.sample import Schemas, sample, type_of

_STYLE: Final = Path(__file__).with_name("docs.css").read_text()
_METHODS: Final = ("get", "post", "put", "patch", "delete", "head", "options")

Part = Mapping[str, Any]


def page(document: Part) -> str:
    """The document as HTML. Everything that comes from it is escaped."""
    info = document.get("info", {})
    title = escape(str(info.get("title", "API")))
    groups = _groups(document)
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<title>{title}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>',
            f'<div class="layout"><nav aria-label="Operations">{"".join(_navigation(groups))}</nav><main>',
            f"<header><h1>{title}</h1><p>Version {escape(str(info.get('version', '')))} · ",
            '<a href="openapi.json">openapi.json</a></p></header>',
            *_main(groups, Schemas(document)),
            "</main></div></body></html>",
        ]
    )


def _groups(document: Part) -> dict[str, list[tuple[str, str, Part]]]:
    """The operations by their first tag: method, path, operation."""
    found: dict[str, list[tuple[str, str, Part]]] = {}
    for path, methods in document.get("paths", {}).items():
        for method in _METHODS:
            if method in methods:
                tags = methods[method].get("tags") or [""]
                found.setdefault(str(tags[0]), []).append((method, path, methods[method]))
    return found


def _anchor(method: str, path: str) -> str:
    return escape(f"{method}-{path.strip('/').replace('/', '-').replace('{', '').replace('}', '') or 'root'}")


def _badge(method: str) -> str:
    return f'<span class="method {method}">{method.upper()}</span>'


def _navigation(groups: Mapping[str, list[tuple[str, str, Part]]]) -> Iterator[str]:
    for group, operations in groups.items():
        yield f"<h2>{escape(group or 'Operations')}</h2><ul>"
        for method, path, _ in operations:
            shown = f'{_badge(method)}<span class="path">{escape(path)}</span>'
            yield f'<li><a href="#{_anchor(method, path)}">{shown}</a></li>'
        yield "</ul>"


def _main(groups: Mapping[str, list[tuple[str, str, Part]]], schemas: Schemas) -> Iterator[str]:
    for group, operations in groups.items():
        yield f"<h2>{escape(group or 'Operations')}</h2>"
        for method, path, operation in operations:
            yield from _operation(method, path, operation, schemas)


def _operation(method: str, path: str, operation: Part, schemas: Schemas) -> Iterator[str]:
    yield f'<section id="{_anchor(method, path)}"><h3>{_badge(method)}<span class="path">{escape(path)}</span></h3>'
    if summary := operation.get("summary"):
        yield f'<p class="summary">{escape(summary)}.</p>'
    for text in str(operation.get("description", "")).split("\n\n"):
        yield f'<p class="who">{_prose(text)}</p>' if text else ""
    yield '<div class="columns"><div>'
    if parameters := operation.get("parameters"):
        yield "<h4>Parameters</h4><table>"
        for one in parameters:
            yield _row(
                one["name"],
                one.get("schema", {}),
                one.get("required", False),
                one.get("description"),
                one["in"],
                schemas,
            )
        yield "</table>"
    body = _json(operation.get("requestBody", {}))
    if body is not None:
        yield "<h4>Body</h4>"
        yield from _fields(body, schemas)
    yield from _answers(operation.get("responses", {}), schemas)
    yield "</div><div>"
    yield from _samples(method, path, operation, schemas)
    yield "</div></div></section>"


def _prose(text: str) -> str:
    """Escaped, with `code` set as code."""
    parts = escape(text).replace("``", "`").split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def _json(holder: Part) -> Part | None:
    content = holder.get("content", {})
    media = content.get("application/json") or next(
        (one for name, one in content.items() if "problem" not in name), None
    )
    return None if media is None else media.get("schema", {})


def _row(name: str, schema: Part, required: bool, note: str | None, place: str, schemas: Schemas) -> str:
    shown = f"<code>{escape(name)}</code>{' <span class=needed>required</span>' if required else ''}"
    where = f" · {escape(place)}" if place else ""
    notes = [
        _prose(one)
        for one in (note or schemas.resolved(schema).get("description"), *schemas.constraints(schema))
        if one
    ]
    text = f'<span class="note">{" · ".join(notes)}</span>' if notes else ""
    return (
        f'<tr><td>{shown}</td><td><span class="type">{escape(type_of(schema, schemas))}{where}</span>{text}</td></tr>'
    )


def _fields(schema: Part, schemas: Schemas, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """The fields of an object; those of objects within it follow theirs, named with their path."""
    if not depth:
        yield "<table>"
    whole = schemas.resolved(schema)
    if "properties" not in whole:
        yield _row(prefix or "(the whole)", whole, False, None, "", schemas)
    for name, field in whole.get("properties", {}).items():
        yield _row(prefix + name, field, name in whole.get("required", ()), field.get("description"), "", schemas)
        inner, mark = schemas.inner(field)
        if "properties" in inner and depth < 3:
            yield from _fields(inner, schemas, f"{prefix}{name}{mark}.", depth + 1)
    if not depth:
        yield "</table>"


def _answers(responses: Part, schemas: Schemas) -> Iterator[str]:
    yield "<h4>Answers</h4><table>"
    for status, response in responses.items():
        success = _json(response) if status.startswith("2") else None
        kind = f' <span class="type">{escape(type_of(success, schemas))}</span>' if success is not None else ""
        problems = "".join(
            f'<span class="note"><code>{escape(str(one.get("value", {}).get("type", "")))}</code> '
            f"{escape(str(one.get('value', {}).get('title', '')))}</span>"
            for one in response.get("content", {}).get("application/problem+json", {}).get("examples", {}).values()
        )
        text = problems or f"{escape(response.get('description', ''))}{kind}"
        yield f"<tr><td><code>{escape(status)}</code></td><td>{text}</td></tr>"
    yield "</table>"


def _samples(method: str, path: str, operation: Part, schemas: Schemas) -> Iterator[str]:
    lines = [f"curl -X {method.upper()} $URL{path}" if method != "get" else f"curl $URL{path}"]
    if operation.get("security"):
        lines.append('-H "Authorization: Bearer $TOKEN"')
    if any(one["name"] == "Idempotency-Key" for one in operation.get("parameters", ())):
        lines.append('-H "Idempotency-Key: $(uuidgen)"')
    body = _json(operation.get("requestBody", {}))
    if body is not None:
        text = json.dumps(sample(body, schemas), ensure_ascii=False)
        lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(text)}"]
    joined = " \\\n  ".join(lines)
    yield f"<h4>Request</h4><pre><code>{escape(joined)}</code></pre>"
    for status, response in operation.get("responses", {}).items():
        answer = _json(response) if status.startswith("2") else None
        if answer is not None:
            text = json.dumps(sample(answer, schemas), indent=2, ensure_ascii=False)
            yield f"<h4>Answer {escape(status)}</h4><pre><code>{escape(text)}</code></pre>"
