"""A message as the entry of a stream: the fields ``k`` (key), ``v`` (value) and ``h`` (headers, a JSON object).

Three fields, the same in each entry, are what streams store best: a node keeps their names once. Producers in other
languages add entries with ``XADD <prefix>:<topic>:<partition> 0-* k … v … h …``, to the partition that is the CRC-32 of
the key modulo the number of partitions, which is the value of ``<topic>`` in the hash ``<prefix>:topics``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import orjson

from microkit.message import Message


def key_of(message: Message) -> bytes:
    """The key's bytes.

    Raises:
        UnicodeEncodeError: the key is no text.
    """
    return message.key.encode("utf-8", "surrogateescape")


def partition_of(key: bytes, partitions: int) -> int:
    return crc32(key) % partitions


def headers_of(message: Message) -> bytes:
    """The headers' JSON. A dead letter may carry a header that came as no text, as surrogates: JSON escapes them."""
    headers = message.headers
    try:
        return orjson.dumps(headers if type(headers) is dict else dict(headers))
    except TypeError:
        return json.dumps(dict(headers)).encode()


def number_of(entry_id: bytes) -> int:
    """An entry's place in its partition, from 1: the streams of this adapter count ``0-1``, ``0-2``, and so on."""
    return int(entry_id[2:])


def message_of(topic: str, fields: Sequence[bytes]) -> Message:
    """The message in an entry. One that is not as it should be has no id, which makes it a dead letter."""
    if len(fields) == 6 and fields[0] == b"k" and fields[2] == b"v" and fields[4] == b"h":
        key, value, raw = fields[1], fields[3], fields[5]
    else:
        found = dict(zip(fields[::2], fields[1::2], strict=False))
        key, value, raw = found.get(b"k", b""), found.get(b"v", b""), found.get(b"h", b"")
    return Message(topic, key.decode("utf-8", "surrogateescape"), value, _headers(raw))


def _headers(raw: bytes) -> dict[str, str]:
    headers: Any
    try:
        headers = orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            headers = json.loads(raw)  # it reads the surrogates that orjson refuses
        except (ValueError, RecursionError):
            headers = None
    if isinstance(headers, dict) and set(map(type, headers.values())) <= {str}:
        return headers
    return {"malformed-headers": raw.decode("utf-8", "surrogateescape")}
