"""Cross-Origin Resource Sharing as nginx can say it: maps of origins, and answers to preflights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from microkit.gateway.filters import Cors
from microkit.gateway.rendering.edge import EdgeRoute
from microkit.gateway.rendering.nginx.text import Block, one_of, pattern, word, worded

SHARING_HEADERS: Final = (
    "Access-Control-Allow-Origin",
    "Access-Control-Allow-Credentials",
    "Access-Control-Allow-Headers",
    "Access-Control-Allow-Methods",
    "Access-Control-Expose-Headers",
    "Access-Control-Max-Age",
)


class Sharing:
    """The variables of each ``Cors`` filter, written ``into`` the maps when it is first asked for."""

    def __init__(self, into: Block) -> None:
        self._into = into
        self._cors: dict[Cors, int] = {}

    def number(self, cors: Cors) -> int:
        """What tells its variables from those of other filters."""
        if cors not in self._cors:
            self._cors[cors] = number = len(self._cors) + 1
            self._maps(cors, number)
        return self._cors[cors]

    def _maps(self, cors: Cors, number: int) -> None:
        name = f"mk_cors_{number}"
        origins = [one for one in cors.origins if one != "*"]
        allowed = [(pattern(one_of(origins)), "$http_origin")] if origins else [(pattern("."), '"*"')]
        self._into.map("$http_origin", f"{name}_origin", allowed)
        self._into.map(f"${name}_origin", f"{name}_allowed", [('""', "0")], default="1")
        methods = "|".join(re.escape(one) for one in cors.methods)
        headers = "|".join(re.escape(one) for one in cors.headers)
        wanted = rf"(?i:\s*+(?:{headers})?+\s*+(?:,\s*+(?:{headers})?+\s*+)*+)$"
        source = (
            f'"${{{name}_allowed}}:$request_method:$http_access_control_request_method:'
            '$http_access_control_request_headers"'
        )
        entries = [(pattern(f"^1:OPTIONS:(?:{methods}):{wanted}"), "1"), (pattern("^[01]:OPTIONS:[^:]"), "0")]
        self._into.map(source, f"{name}_preflight", entries)
        self._into.map(f"$mk_foreign_page${name}_allowed", f"mk_foreign_page_{number}", [("10", "1")], default="0")

    def refuse(self, inner: Block, cors: Cors) -> None:
        """Answers preflights: those that ask for more than is allowed are refused."""
        variable = f"$mk_cors_{self.number(cors)}_preflight"
        returning(inner, f'{variable} = "0"', 403)
        returning(inner, f'{variable} = "1"', 204)

    def answers(self, routes: Sequence[EdgeRoute]) -> list[tuple[str, str]]:
        """The headers by which pages are told that they may call."""
        answers: list[tuple[str, str]] = []
        sharing: dict[int, list[str]] = {}
        for one in routes:
            if one.cors is not None:
                sharing.setdefault(self.number(one.cors), []).append(one.id)
        found: dict[str, list[tuple[str, str]]] = {name: [] for name in (*SHARING_HEADERS, "Vary")}
        for cors, number in self._cors.items():
            theirs = pattern(one_of(sharing[number]))
            allowed, preflight = f"mk_cors_{number}_origin", f"mk_cors_{number}_preflight"
            found["Access-Control-Allow-Origin"].append((theirs, f"${allowed}"))
            found["Vary"] += [(theirs, "Origin")] if "*" not in cors.origins else []
            said = _told(cors)
            for place, (name, (when, value)) in enumerate(said.items()):
                variable = f"mk_cors_{number}_said_{place}"
                asked, fits = (f"${preflight}", "1") if when == "preflight" else (f"${allowed}", "~.")
                self._into.map(asked, variable, [(word(fits), worded(value))])
                found[name].append((theirs, f"${variable}"))
        for place, (name, entries) in enumerate(found.items()):
            if entries:
                self._into.map("$mk_route", f"mk_shared_{place}", entries)
                answers.append((name, f"$mk_shared_{place}"))
        return answers


def returning(inner: Block, condition: str, status: int) -> None:
    """Ends the request with ``status`` where the condition holds."""
    inner.lines += [f"if ({condition}) {{", f"    return {status};", "}"]


def _told(cors: Cors) -> Mapping[str, tuple[str, str]]:
    """What pages are told: always where they may call, or to preflights alone."""
    found = {
        "Access-Control-Allow-Methods": ("preflight", ", ".join(cors.methods)),
        "Access-Control-Allow-Headers": ("preflight", ", ".join(cors.headers)),
        "Access-Control-Max-Age": ("preflight", str(cors.max_age)),
    }
    if cors.credentials:
        found["Access-Control-Allow-Credentials"] = ("allowed", "true")
    if cors.expose:
        found["Access-Control-Expose-Headers"] = ("allowed", ", ".join(cors.expose))
    return found
