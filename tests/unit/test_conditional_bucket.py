"""The bucket behind the broker of ``up --real``: its listings are localbucket's own, given from memory.

Both serve the same folder, and are asked the same.
"""

from __future__ import annotations

import base64
import http.client
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import localbucket  # type: ignore[import-untyped]
import pytest

from microkit.servers.conditional_bucket import Handler

KEYS = [
    *(f"c/topics/{topic}/partitions/{number}/{end}" for topic in "ab" for number in (0, 1, 10) for end in "12w"),
    *("c/topics.json", "c/topicsx/1", "c/tops/1", "other/1", "z", "ü/ä&<b>", "ü/😀", "ü/￮"),
]
PREFIXES = ["", "c", "c/", "c/topics", "c/topics/", "c/topics/a/partitions/1", "nowhere/", "c/../other/", "ü/"]
MARKERS = ["", "c/topics/a/partitions/10/1", "c/topics/b/", "a", "zz", "c/topics"]


class Theirs(localbucket.S3Handler):  # type: ignore[misc]  # it has no types
    disable_nagle_algorithm = True


@contextmanager
def serving(handler: type[Any], folder: Path) -> Iterator[http.client.HTTPConnection]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Serving", (handler,), {"data_root": folder}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with closing(http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)) as connection:
            yield connection
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass
class Both:
    folder: Path
    ours: http.client.HTTPConnection
    theirs: http.client.HTTPConnection

    def told(self, **query: Any) -> str:
        """What both tell of the bucket."""
        target = "/broker?" + urlencode({name.replace("_", "-"): value for name, value in query.items()})
        ours, theirs = ask(self.ours, "GET", target), ask(self.theirs, "GET", target)
        assert ours == theirs, target
        return ours

    def write(self, key: str, body: str, **headers: str) -> None:
        ask(self.ours, "PUT", f"/broker/{key}", body, **headers)


def ask(connection: http.client.HTTPConnection, method: str, target: str, body: str = "", **headers: str) -> str:
    connection.request(
        method, target, body.encode(), {name.replace("_", "-"): value for name, value in headers.items()}
    )
    answer = connection.getresponse()
    found = answer.read().decode()
    assert answer.status < 300, (method, target, found)
    return found


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    for key in KEYS:
        path = tmp_path / "broker" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    with ExitStack() as running:
        ours, theirs = (running.enter_context(serving(each, tmp_path)) for each in (Handler, Theirs))
        yield Both(tmp_path / "broker", ours, theirs)


@pytest.mark.parametrize("delimiter", ["", "/"])
@pytest.mark.parametrize("most", [0, 1, 3, 1000])
def test_a_listing_is_what_a_walk_through_all_finds(both: Both, delimiter: str, most: int) -> None:
    for prefix, marker in product(PREFIXES, MARKERS):
        asked = {"prefix": prefix, "delimiter": delimiter, "max_keys": most}
        both.told(**asked, marker=marker)
        both.told(**asked, list_type=2, start_after=marker)
        for kind in "KP":
            both.told(**asked, list_type=2, continuation_token=base64.urlsafe_b64encode(f"{kind}:{marker}".encode()))


def test_names_may_be_asked_for_encoded(both: Both) -> None:
    plain, encoded = both.told(list_type=2, prefix="ü/"), both.told(list_type=2, prefix="ü/", encoding_type="url")
    assert "<Key>ü/ä&amp;&lt;b&gt;</Key>" in plain
    assert "<Key>%C3%BC/%C3%A4%26%3Cb%3E</Key>" in encoded
    assert both.told(list_type=2, prefix="ü/") == plain


def test_what_is_written_is_listed_as_it_is_now(both: Both) -> None:
    before = both.told()
    both.write("c/topics.json", "longer than it was")
    both.write("c/new/1", "new")
    both.write("c/.localbucket-hidden", "as what is being written")
    both.write("c/copied", "", x_amz_copy_source="/broker/c/new/1")
    for gone in ("z", "other/1", "never/there"):
        ask(both.ours, "DELETE", f"/broker/{gone}")
    after = both.told()
    assert before.count("<Key>") + 2 - 2 == after.count("<Key>")
    assert "<Size>18</Size>" in after
    assert {"<Key>c/new/1</Key>", "<Key>c/copied</Key>"} <= set(after.replace("><", ">\n<").split("\n"))
    assert "<Key>z</Key>" not in after


@pytest.mark.parametrize(
    ("method", "key", "headers", "status"),
    [
        ("PUT", "z", {"If-Match": '"of another"'}, 412),
        ("PUT", "z", {"If-None-Match": "*"}, 412),
        ("PUT", "c//topics.json", {}, 400),
        ("DELETE", "c//topics.json", {}, 400),
        ("PUT", "c/../z", {}, 400),
    ],
)
def test_what_is_refused_changes_nothing(
    both: Both, method: str, key: str, headers: dict[str, str], status: int
) -> None:
    before = both.told()
    both.ours.request(method, f"/broker/{key}", b"other", headers)
    with both.ours.getresponse() as answer:
        assert answer.status == status
    assert both.told() == before


def test_those_who_write_and_list_at_once_leave_a_true_listing(both: Both) -> None:
    both.told()

    def write(name: str) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", both.ours.port, timeout=60)) as connection:
            for number in range(30):
                ask(connection, "PUT", f"/broker/c/shared/{number}", name)
                ask(connection, "PUT", f"/broker/{name}/{number}", name)
                ask(connection, "GET", "/broker?prefix=c/shared/")
                ask(connection, "DELETE", f"/broker/{name}/{number - 1}")

    with ThreadPoolExecutor(4) as writers:
        list(writers.map(write, [f"writer-{number}" for number in range(4)]))
    assert both.told().count("<Key>") == len(KEYS) + 30 + 4


def test_a_bucket_that_is_made_anew_is_empty(both: Both) -> None:
    both.told()
    for key in KEYS:
        ask(both.ours, "DELETE", f"/broker/{quote(key)}")
    ask(both.ours, "DELETE", "/broker")
    ask(both.ours, "PUT", "/broker")
    assert "<Key>" not in both.told()


def test_the_body_of_an_answer_does_not_wait_until_its_head_is_confirmed(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watched(Handler):
        def handle(self) -> None:
            seen.append(self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            super().handle()

    with serving(Watched, tmp_path) as connection:
        ask(connection, "GET", "/")
    assert seen
    assert all(seen)
