"""Settings as they may be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

import orjson
from pydantic import Secret, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from microkit.redaction import MASK, names_a_secret, redact, redact_text
from microkit.settings.model import ServiceSettings
from microkit.settings.quantities import in_units
from microkit.settings.values import SecretUrl

_LONGEST: Final = 200


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as ``microkit config show`` prints it. ``value`` and ``default`` are masked; ``default`` is empty
    where the setting is required; ``source`` is ``default``, ``environment``, ``.env``, ``override`` or a directory."""

    key: str
    value: str
    default: str
    source: str
    help: str


def describe(settings: ServiceSettings) -> list[Setting]:
    """Every setting with its key, value, default and where the value came from; no secret is readable in it."""
    origin = settings.origin
    described = []
    for name, info in type(settings).model_fields.items():
        default = origin.defaults.get(name, info.get_default(call_default_factory=True))
        described.append(
            Setting(
                key=origin.key(name),
                value=masked(name, info, getattr(settings, name)),
                default="" if default is PydanticUndefined else masked(name, info, default),
                source=origin.places.get(name, "default"),
                help=info.description or "",
            )
        )
    return described


def is_secret(info: FieldInfo) -> bool:
    """Whether a field's type says that its value is secret whole."""
    kinds = [kind for kind in (info.annotation, *get_args(info.annotation)) if isinstance(kind, type)]
    return any(issubclass(kind, SecretStr | SecretBytes | Secret) and kind is not SecretUrl for kind in kinds)


def masked(name: str, info: FieldInfo | None, value: Any) -> str:
    """``value``, given or validated, of the field ``name``, without what must not be shown."""
    if value is None:
        return ""
    if info is None or is_secret(info) or (names_a_secret(name) and not isinstance(value, bool | int | float)):
        return MASK
    if info.annotation is SecretUrl and isinstance(value, str):
        value = SecretUrl(value)
    text = redact_text(written(info, value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def written(info: FieldInfo, value: Any) -> str:
    """``value`` as it is written in a variable."""
    if value is None or isinstance(value, bool):
        return {None: "", True: "true", False: "false"}[value]
    units = in_units(value, info.metadata)
    if units is not None:
        return units
    if isinstance(value, list | tuple | set | frozenset) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, str | int | float | SecretUrl):
        return str(value)
    if isinstance(value, Mapping):
        return orjson.dumps(redact(value)).decode()
    return str(to_jsonable_python(value, fallback=str))
