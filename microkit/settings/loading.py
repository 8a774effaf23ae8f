"""Reads the settings of a service from where operators put them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, get_origin

import orjson
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from microkit.errors import ConfigurationError
from microkit.redaction import redact_text
from microkit.settings.describe import is_secret, masked
from microkit.settings.model import Origin, ServiceSettings

S = TypeVar("S", bound=ServiceSettings)

SHARED_SECRETS_DIR: Final = "MICROKIT_SECRETS_DIR"

_NESTED: Final = "__"  # PAYMENT_CLIENTS__BILLING__TIMEOUT

# What Kubernetes puts into every container for each Service of the namespace, one named "billing" among them:
# BILLING_SERVICE_HOST, BILLING_PORT=tcp://10.0.0.11:3003, BILLING_PORT_3003_TCP_ADDR ...
_SERVICE_LINK: Final = re.compile(
    r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)", re.ASCII
)
_SERVICE_LINK_PORT: Final = re.compile(r"(tcp|udp|sctp)://")


class WrongSettings(ConfigurationError):
    """Everything that is wrong with the settings of ``whose``: a service, or a whole system."""

    def __init__(self, whose: str, troubles: Sequence[str]) -> None:
        lines = "".join(f"\n  {trouble}" for trouble in troubles)
        super().__init__(
            troubles[0] if len(troubles) == 1 else f"{len(troubles)} settings of {whose} are wrong:{lines}"
        )
        self.troubles = tuple(troubles)


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere that values are given: ``environment``, ``.env``, a directory of secrets."""

    name: str
    variables: Mapping[str, str]


class _Variables(EnvSettingsSource):
    """pydantic-settings' reader, on variables that it is given."""

    def __init__(self, settings: type[ServiceSettings], prefix: str, variables: Mapping[str, str]) -> None:
        super().__init__(settings, case_sensitive=False, env_prefix=prefix, env_nested_delimiter=_NESTED)
        self.env_vars = {name.lower(): value for name, value in variables.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo | None, value: Any) -> Any:
        """JSON; else, for a list, words with commas between; else the text, for the field's own validators."""
        try:
            decoded = orjson.loads(value)
        except ValueError:
            decoded = None
        annotation = field.annotation if field is not None else None  # of a key that no setting has, for one
        kind = get_origin(annotation) or annotation
        if kind in {list, set, frozenset, tuple} and not isinstance(decoded, list):
            return [word.strip() for word in value.split(",") if word.strip()]
        return value if decoded is None else decoded


def load(
    cls: type[S],
    service: str,
    *,
    overrides: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    env_file: Path | None = Path(".env"),
    neighbours: Collection[str] = (),
) -> S:
    """The settings of ``service``.

    ``overrides`` (by field name) win over everything; ``defaults`` take the place of the class's own. ``environ`` is
    the process's environment unless given. ``neighbours`` are names of other services: where ``bill-pay`` is one,
    ``BILL_PAY_PORT`` is no mistake in the settings of ``bill``.

    Raises:
        ConfigurationError: keys are unknown or values do not fit. The message names each, says what is wrong, and
            gives an example.
    """
    origin = Origin(service, defaults={**_own_defaults(cls, service), **(defaults or {})})
    reading = _Reading(cls, origin, neighbours)
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for place in reading.places(os.environ if environ is None else environ, env_file):
        for name, value in reading.values(place).items():
            if name not in values:
                values[name], places[name] = value, place.name
    for name, value in (overrides or {}).items():
        if name in cls.model_fields:
            values[name], places[name] = value, "override"
        else:
            reading.unknown(name, "override")
    settings = reading.validated({**origin.defaults, **values}, places)
    settings.given_by(Origin(service, places, origin.defaults))
    return settings


def _own_defaults(cls: type[ServiceSettings], service: str) -> dict[str, object]:
    stock = ServiceSettings.model_fields["database_url"].default
    if cls.model_fields["database_url"].default != stock:
        return {}
    return {"database_url": f"sqlite+aiosqlite:///.microkit/{service}.db"}


class _Reading(Generic[S]):
    """One attempt to read the settings of a service, and what went wrong in it."""

    def __init__(self, cls: type[S], origin: Origin, neighbours: Collection[str]) -> None:
        self.cls = cls
        self.origin = origin
        self.fields = {origin.key(name): name for name in cls.model_fields}
        self.nested = {key for key, name in self.fields.items() if name == "clients"}
        self.secrets_key = origin.key("secrets_dir")
        others = {Origin(name).prefix for name in neighbours}
        self.other_prefixes = tuple(name for name in others if name != origin.prefix and name.startswith(origin.prefix))
        self.troubles: list[str] = []

    def places(self, environ: Mapping[str, str], env_file: Path | None) -> Iterator[Place]:
        """Where values may be given, the strongest first."""
        dotenv = self._dotenv(env_file)
        yield Place("environment", environ)
        yield Place(".env", dotenv)
        for key in (self.secrets_key, SHARED_SECRETS_DIR):
            folder = environ.get(key) or dotenv.get(key)
            if folder:
                yield Place(f"secrets in {folder}", dict(self._secrets(key, Path(folder))))

    def _dotenv(self, env_file: Path | None) -> dict[str, str]:
        if env_file is None:
            return {}
        try:
            found = DotEnvSettingsSource(self.cls, env_file=env_file, case_sensitive=True).env_vars
        except (OSError, UnicodeDecodeError) as error:
            self.troubles.append(f"{env_file} cannot be read: {_reason(error)}")
            return {}
        return {name: value for name, value in found.items() if value is not None}

    def _secrets(self, key: str, folder: Path) -> Iterator[tuple[str, str]]:
        try:
            files = sorted(file for file in folder.iterdir() if not file.name.startswith(".") and file.is_file())
        except OSError as error:
            self.troubles.append(f"{key}={folder}: {_reason(error)}; it names a directory with one file a setting")
            return
        for file in files:
            name = file.name.upper()
            if name.startswith(self.origin.prefix):
                try:
                    yield name, file.read_text(encoding="utf-8").strip()
                except (OSError, UnicodeDecodeError) as error:
                    self.troubles.append(f"{name} ({file}) cannot be read: {_reason(error)}")
            elif name.lower() in self.cls.model_fields:
                self.troubles.append(f"{file} is read by no service; did you mean {self.origin.key(name)}?")

    def values(self, place: Place) -> dict[str, Any]:
        """What ``place`` gives, by field."""
        mine: dict[str, str] = {}
        for name, value in place.variables.items():
            key = name.upper()
            if not key.startswith(self.origin.prefix) or key == self.secrets_key:
                continue
            if key in self.fields or key.partition(_NESTED)[0] in self.nested:
                if not (key.endswith("_PORT") and _SERVICE_LINK_PORT.match(value)):
                    mine[key] = value
            elif not key.startswith(self.other_prefixes) and not self._is_service_link(key):
                self.unknown(key, place.name)
        return _Variables(self.cls, self.origin.prefix, mine)()

    def _is_service_link(self, key: str) -> bool:
        return _SERVICE_LINK.fullmatch(key.removeprefix(self.origin.prefix)) is not None

    def unknown(self, key: str, place: str) -> None:
        """Notes a key that no setting has."""
        names = list(self.cls.model_fields)
        near = difflib.get_close_matches(key.removeprefix(self.origin.prefix).lower(), names, n=1)
        if near:
            hint = f"did you mean {self.origin.key(near[0])}? {self._example(near[0])}"
        else:
            hint = f"there are {', '.join(self.origin.key(name) for name in sorted(names))}"
        self.troubles.append(f"{key} ({place}) is no setting of {self.origin.service}; {hint}")

    def validated(self, values: Mapping[str, Any], places: Mapping[str, str]) -> S:
        """The settings, if nothing is wrong.

        Raises:
            ConfigurationError: with everything that is.
        """
        settings: S | None = None
        try:
            settings = self.cls(**values)
        except ValidationError as error:
            for wrong in error.errors(include_url=False, include_input=False):
                name = str(wrong["loc"][0]) if wrong["loc"] else ""
                self.troubles.append(self._wrong(name, wrong, values, places))
        if settings is None or self.troubles:
            raise WrongSettings(self.origin.service, self.troubles) from None
        return settings

    def _wrong(self, name: str, wrong: ErrorDetails, values: Mapping[str, Any], places: Mapping[str, str]) -> str:
        key = self.origin.key(name)
        if not name:  # from a validator of the whole model, about several settings
            return f"The settings of {self.origin.service}: {self._told(wrong)}"
        if wrong["type"] == "missing":
            return f"{key} is missing: {self._meaning(name)}{self._example(name)}"
        inner = "".join(f"[{part}]" for part in wrong["loc"][1:])
        place = places.get(name, "default")
        if wrong["type"] == "extra_forbidden":  # whatever it is, it may be a secret under a wrong name
            return f"{key}{inner} ({place}) is no setting of {self.origin.service}. {self._example(name)}".rstrip()
        info = self.cls.model_fields[name]
        patterned = wrong["type"] == "string_pattern_mismatch" and info.examples
        text = "has not the form that it must have" if patterned else self._told(wrong)
        value = masked(name, info, values.get(name, info.get_default(call_default_factory=True)))
        return f"{key}{inner}={value} ({place}): {text}. {self._example(name)}".rstrip()

    def _told(self, wrong: ErrorDetails) -> str:
        """The message, with settings called by the keys that operators know. A name of one word may be just a word."""
        text = redact_text(wrong["msg"].removeprefix("Value error, "))
        names = "|".join(re.escape(name) for name in self.cls.model_fields if "_" in name)
        return re.sub(rf"\b({names})\b", lambda found: self.origin.key(found[1]), text)

    def _meaning(self, name: str) -> str:
        info = self.cls.model_fields.get(name)
        return f"{info.description}. " if info is not None and info.description else ""

    def _example(self, name: str) -> str:
        """An example by field name, ``""`` where none can be given."""
        info = self.cls.model_fields.get(name)
        if info is None:
            return ""
        if info.examples:
            example = str(info.examples[0])
        elif is_secret(info):
            example = "<a random text of 32 characters>"
        else:
            default = info.get_default(call_default_factory=True)
            example = "" if default is PydanticUndefined else masked(name, info, default)
            if not example:
                return ""
        return f"An example: {self.origin.key(name)}={example}"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "it is not UTF-8"
