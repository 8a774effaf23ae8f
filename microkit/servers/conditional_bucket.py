"""localbucket with what a broker on it relies on: ``python -m microkit.servers.conditional_bucket FOLDER``.

An object is replaced only if it is still the one that was read (``If-Match``, without which of two writers that have
read the same one loses what it wrote), and what breaks off half-way, since whoever sent it was killed, is not stored.
Listings come from memory: localbucket's own goes through all objects for each page, and a broker that lists what a
topic has whenever it is asked for a message gets slower with each. What is there is read from the folder when a bucket
is listed first, so that a start after a crash finds what was stored; nobody else writes to it meanwhile.

Source: Amazon S3's conditional writes, https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

import sys
import threading
import xml.etree.ElementTree as ET  # to write it; what comes in is localbucket's
from collections.abc import Callable
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from typing import Any

import localbucket  # type: ignore[import-untyped]

from microkit.servers.listing import Listing

_writing = threading.Lock()
_listings: dict[Path, Listing] = {}
"""By the bucket's folder; theirs who holds ``_writing``."""

_CONTENTS = b"<Contents />"
"""Where the listed objects go; nothing else can be written like this."""


class Handler(localbucket.S3Handler):  # type: ignore[misc]  # it has no types
    """Answers one connection."""

    disable_nagle_algorithm = True
    """Head and body are sent one after the other. The kernel would keep the body back until the head is confirmed,
    for which the other side takes its 40 ms: with each object that is read."""
    _told = b""
    """The objects of a listing that is about to be sent."""

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
    ) -> tuple[list[tuple[str, str]], list[str], bool, str]:
        """As localbucket's, with what is told of an object in place of its path."""
        encode = self._list_encoder()

        def tell(key: str) -> str:
            root = ET.Element("_")
            super(Handler, self)._add_list_entries(root, [(key, bucket_dir / key)], [], encode)
            return ET.tostring(root[0], "unicode")

        with _writing:
            listing = _listings.get(bucket_dir)
            if listing is None:
                all_of_it, _, _, _ = super()._list_entries(bucket_dir, "", "", "", False, sys.maxsize)
                listing = _listings[bucket_dir] = Listing(bucket_dir, [key for key, _ in all_of_it])
            keys, common, truncated, last = listing.page(prefix, delimiter, marker, marker_is_prefix, max_keys)
            encoded = self.query.get("encoding-type") == "url"
            return [(key, tell(key) if encoded else listing.told(key, tell)) for key in keys], common, truncated, last

    def _add_list_entries(
        self, root: ET.Element, contents: list[tuple[str, str]], common_prefixes: list[str], encode: Callable[..., str]
    ) -> None:
        self._told = "".join([told for _, told in contents]).encode()
        ET.SubElement(root, "Contents")
        super()._add_list_entries(root, [], common_prefixes, encode)

    def _send_xml(self, root: ET.Element) -> None:
        told, self._told = self._told, b""
        body = ET.tostring(root, encoding="UTF-8", xml_declaration=True).replace(_CONTENTS, told, 1)
        self._send(HTTPStatus.OK, body, {"Content-Type": "application/xml"})

    def _write_object(self, bucket: str, key: str, write: Callable[[Any], str]) -> str:
        with _writing:
            target = self._object_path(bucket, key)  # a key that it refuses is nothing to look again for
            wanted = self.headers.get("If-Match")
            if wanted and not (target.is_file() and localbucket.etag_matches(wanted, localbucket.object_etag(target))):
                raise self._precondition_failed_error()
            try:
                etag: str = super()._write_object(bucket, key, write)
            finally:
                self._written(bucket, key)
            return etag

    def _delete_object(self, bucket: str, key: str) -> None:
        with _writing:
            self._object_path(bucket, key)
            try:
                super()._delete_object(bucket, key)
            finally:
                self._written(bucket, key)

    def _delete_bucket(self, bucket: str) -> None:
        with _writing:
            super()._delete_bucket(bucket)
            _listings.pop(self.data_root / bucket, None)

    def _written(self, bucket: str, key: str) -> None:
        listing = _listings.get(self.data_root / bucket)
        if listing is not None and not key.rpartition("/")[2].startswith(localbucket.TEMP_PREFIX):
            listing.look_again(key)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Only what went wrong: a broker asks some hundred times a second, also when nobody sends it anything."""
        if int(code) >= HTTPStatus.BAD_REQUEST:
            super().log_request(code, size)


if __name__ == "__main__":
    localbucket.S3Handler = Handler  # its ``main`` serves what stands here
    localbucket.main()
