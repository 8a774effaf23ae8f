"""What a broker asks of its bucket: nobody's write is lost to another's, and no object is half there."""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest

from microkit.servers.bucket import BucketServer
from microkit.testing.folder import short_lived

OBJECT = "/broker/watermark"


@pytest.fixture
def bucket() -> Iterator[BucketServer]:
    with short_lived("mkbucket-") as folder:
        server = BucketServer(folder)
        server.make("broker")
        server.start()
        try:
            yield server
        finally:
            server.stop()


def ask(
    server: BucketServer, method: str, body: bytes = b"", *, target: str = OBJECT, **headers: str
) -> tuple[int, str, bytes]:
    """Status, ETag and body."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        connection.request(
            method, target, body or None, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.headers.get("ETag", ""), answer.read()


def test_an_object_is_replaced_only_by_who_has_seen_it(bucket: BucketServer) -> None:
    first = ask(bucket, "PUT", b"1")[1]
    status, second, _ = ask(bucket, "PUT", b"2", If_Match=first)
    assert status == 200
    assert ask(bucket, "PUT", b"3", If_Match=first)[0] == 412
    assert ask(bucket, "GET")[1:] == (second, b"2")


def test_an_object_that_is_gone_is_not_made_anew(bucket: BucketServer) -> None:
    assert ask(bucket, "PUT", b"1", If_Match='"0cc175b9c0f1b6a831c399e269772661"')[0] == 412
    assert ask(bucket, "GET")[0] == 404


def test_of_those_who_count_up_at_once_none_is_lost(bucket: BucketServer) -> None:
    ask(bucket, "PUT", b"0")
    statuses: Counter[int] = Counter()

    def count_up() -> None:
        done = 0
        while done < 10:
            _, etag, found = ask(bucket, "GET")
            status = ask(bucket, "PUT", b"%d" % (int(found) + 1), If_Match=etag)[0]
            statuses[status] += 1
            done += status == 200

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ask(bucket, "GET")[2] == b"40"
    assert statuses[412] > 0, "they never met: nothing was shown"


def test_what_breaks_off_is_not_stored(bucket: BucketServer) -> None:
    ask(bucket, "PUT", b"whole")
    with socket.create_connection(("127.0.0.1", bucket.port), timeout=30) as sender:
        sender.sendall(f"PUT {OBJECT} HTTP/1.1\r\nHost: b\r\nContent-Length: 1000\r\n\r\n".encode() + b"x" * 400)
        sender.shutdown(socket.SHUT_WR)  # it was killed
        assert b" 400 " in sender.recv(4096).partition(b"\r\n")[0]
    assert ask(bucket, "GET")[2] == b"whole"


def test_killed_while_it_is_written_to_it_lists_what_it_confirmed(bucket: BucketServer) -> None:
    confirmed: set[str] = set()
    enough = threading.Event()

    def write(writer: int) -> None:
        for number in range(400):  # two of them fit on one page
            key = f"records/{writer}-{number:03}"
            try:
                if ask(bucket, "PUT", b"one", target=f"/broker/{key}")[0] != 200:
                    return
            except (OSError, http.client.HTTPException):
                return  # it was killed
            confirmed.add(key)
            if number == 50:
                enough.set()

    listed(bucket)
    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    assert enough.wait(60)
    bucket.kill()
    for thread in threads:
        thread.join()
    bucket.start()
    found = listed(bucket)
    assert confirmed <= set(found)
    assert found == sorted(found)
    for key in found:
        assert ask(bucket, "GET", target=f"/broker/{key}")[::2] == (200, b"one")


def listed(server: BucketServer) -> list[str]:
    body = ask(server, "GET", target="/broker?list-type=2&prefix=records/")[2].decode()
    return re.findall("<Key>(.*?)</Key>", body)
