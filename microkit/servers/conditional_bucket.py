"""localbucket with what a broker on it relies on: ``python -m microkit.servers.conditional_bucket FOLDER``.

An object is replaced only if it is still the one that was read (``If-Match``, without which of two writers that have
read the same one loses what it wrote), and what breaks off half-way, since whoever sent it was killed, is not stored.
A listing looks only where its prefix points: localbucket's own goes through all objects for each page, so that a broker
gets slower with every message.

Source: Amazon S3's conditional writes, https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

import localbucket  # type: ignore[import-untyped]

_writing = threading.Lock()


class Handler(localbucket.S3Handler):  # type: ignore[misc]  # it has no types
    """Answers one connection."""

    def _get(self, bucket: str, key: str, include_body: bool) -> None:
        # Between opening the object and looking up its ETag nobody may replace it: they would not belong together.
        with ExitStack() as looking:
            looking.enter_context(_writing)
            self._looking = looking
            super()._get(bucket, key, include_body)

    def _send_file(self, *answer: Any) -> None:
        self._looking.close()
        super()._send_file(*answer)

    def _read_body(self) -> bytes:
        body: bytes = super()._read_body()
        in_chunks = "aws-chunked" in self.headers.get("Content-Encoding", "") or self.headers.get("Transfer-Encoding")
        if not in_chunks and len(body) < int(self.headers.get("Content-Length") or 0):  # chunks tell by themselves
            raise localbucket.S3Error(HTTPStatus.BAD_REQUEST, "IncompleteBody", "The body ended too early.")
        return body

    def _list_entries(
        self, bucket_dir: Path, prefix: str, delimiter: str, marker: str, marker_is_prefix: bool, max_keys: int
    ) -> tuple[list[tuple[str, Path]], list[str], bool, str]:
        base = prefix[: prefix.rfind("/") + 1]
        if not base or ".." in base.split("/"):
            found: tuple[list[tuple[str, Path]], list[str], bool, str] = super()._list_entries(
                bucket_dir, prefix, delimiter, marker, marker_is_prefix, max_keys
            )
            return found
        if marker and not marker.startswith(base):
            if marker.encode() > base.encode() or (marker_is_prefix and base.startswith(marker)):
                return [], [], False, ""
            marker = ""
        keys, common, truncated, last = super()._list_entries(
            bucket_dir / base, prefix[len(base) :], delimiter, marker[len(base) :], marker_is_prefix, max_keys
        )
        last = last[:2] + base + last[2:] if last else ""
        return [(base + key, path) for key, path in keys], [base + each for each in common], truncated, last

    def _write_object(self, bucket: str, key: str, write: Callable[[Any], str]) -> str:
        with _writing:
            if wanted := self.headers.get("If-Match"):
                target = self._object_path(bucket, key)
                if not target.is_file() or not localbucket.etag_matches(wanted, localbucket.object_etag(target)):
                    raise self._precondition_failed_error()
            etag: str = super()._write_object(bucket, key, write)
            return etag


if __name__ == "__main__":
    localbucket.S3Handler = Handler  # its ``main`` serves what stands here
    localbucket.main()
