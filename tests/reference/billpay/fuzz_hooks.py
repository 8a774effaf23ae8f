"""What schemathesis leaves alone, each with its reason; ``schemathesis.toml`` names this file.

Requests that fit the document are to be accepted. These are not, rightly, and no JSON Schema can say so.
"""

from __future__ import annotations

from typing import Any, Final

import schemathesis
from schemathesis import Case, Response
from schemathesis.core.failures import Failure
from schemathesis.hooks import HookContext
from schemathesis.openapi.checks import EnsureResourceAvailability, RejectedPositiveData

REFUSED_RIGHTLY: Final = {
    "urn:problem:malformed-cursor": "a cursor is opaque: only what was given out is one",
    "urn:problem:idempotency-key-reused": "whether a key was used with another body is no matter of the body",
    "urn:problem:weak-password": "what everybody tries first is a list of words, and a name in it is one's own",
    "urn:problem:unreadable-target": "control characters in a path are refused before anything reads it",
    "https://stellar.org/horizon-errors/bad_request": "an address has a checksum, an envelope a signature",
    "https://stellar.org/horizon-errors/unsupported_media_type": "Horizon takes forms alone, and says it so",
    "https://stellar.org/horizon-errors/transaction_malformed": "an envelope is base64 of XDR",
}
REFUSED_TEXTS: Final = {
    "The character U+0000 is in no text that can be stored": "it fits every string of JSON Schema, and no database",
}
REFUSED_VALUES: Final = {
    "Decimal input should have no more than": "the digits of a number have no word in JSON Schema",
    "value is not a valid email address": "what an e-mail address is, format: email says in outline",
    "the address has a mistake in it": "a Stellar address ends in a checksum",
    "the date is not on the calendar": "years before 1 and after 9999, and leap seconds",
}


@schemathesis.hook
def map_body(context: HookContext, body: Any) -> Any:
    """Writes 64.0 as 64: to JSON Schema both are integers, and a strict reader refuses the first everywhere."""
    return _plain(body)


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """Whether a failure counts."""
    if isinstance(failure, EnsureResourceAvailability):
        # Taken for what POST /payments creates, because it stands below it: a refund is another request's work.
        return not case.path.endswith("/refund")
    if not isinstance(failure, RejectedPositiveData):
        return True
    url = response.request.url or ""
    if "%7B" in url or "/None" in url:
        return False  # a link of Horizon's is a template, /ledgers/{sequence}; a bill nobody pays has no payment
    return not _rightly_refused(response.json())


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _rightly_refused(problem: Any) -> bool:
    errors = problem.get("errors")
    if errors:
        return all(any(known in error["detail"] for known in REFUSED_VALUES) for error in errors)
    return problem.get("type") in REFUSED_RIGHTLY or problem.get("detail") in REFUSED_TEXTS
