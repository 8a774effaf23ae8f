"""nginx' syntax: words that are taken as they are, whatever they hold, and blocks of them.

A configuration is a sequence of words. Within double quotes a backslash takes the next character as it is, and in most
places ``$name`` is a variable, for which nginx knows no escape: a dollar is itself written as a variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from microkit.errors import ConfigurationError

DOLLAR = "mk_dollar"
"""The variable that holds a dollar."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN = re.compile(r"[A-Za-z0-9_./:@=+*-]+")
_MOST = 4000
"""nginx reads no longer word than its buffer of 4,096 bytes."""


class Variable(str):
    """The name of a variable, where the rest is text."""

    __slots__ = ()


def word(text: str) -> str:
    """A word that is exactly ``text`` where nginx looks for no variables: names, patterns, numbers.

    Raises:
        ConfigurationError: it has a control character, or is too long for nginx.
    """
    if _UNPRINTABLE.search(text):
        raise ConfigurationError(f"nginx: {text[:80]!r} has a control character, which no configuration can hold")
    if len(text.encode()) > _MOST:
        raise ConfigurationError(f"nginx: {text[:80]!r}… has more than {_MOST} bytes, which nginx does not read")
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def worded(*parts: str) -> str:
    """A word of text and variables, for where nginx looks for variables: a dollar in the text stays a dollar.

    Raises:
        ConfigurationError: as of :func:`word`.
    """
    written = "".join(
        f"${{{part}}}" if isinstance(part, Variable) else part.replace("$", f"${{{DOLLAR}}}") for part in parts
    )
    quoted = word(written)
    return quoted if quoted.startswith('"') else f'"{quoted}"'


def pattern(expression: str, *, cased: bool = True) -> str:
    """A regular expression as the key of a map."""
    return word(("~" if cased else "~*") + expression)


def spelled(text: str, *, query: bool = False) -> str:
    """An expression for all spellings of ``text``: letters and digits may come percent-encoded.

    In a ``query`` any character may, and a space may be a plus. In a path (which is in its one spelling) reserved
    characters are something else when they are encoded, and what is encoded stays so.
    """
    return "".join(_spellings(found, query=query) for found in _characters(text, query=query))


def _characters(text: str, *, query: bool) -> list[str]:
    return list(text) if query else re.findall(r"%[0-9A-F]{2}|.", text, re.DOTALL)


def _spellings(character: str, *, query: bool) -> str:
    if len(character) == 3:
        return _encoded(int(character[1:], 16))
    encoded = "".join(_encoded(byte) for byte in character.encode())
    if query:
        plain = r"|\+" if character == " " else "" if character in "%&+#" else f"|{re.escape(character)}"
        return f"(?:{encoded}{plain})"
    if re.fullmatch(r"[A-Za-z0-9._~-]", character):
        return f"(?:{re.escape(character)}|{encoded})"
    return re.escape(character)


def _encoded(byte: int) -> str:
    digits = f"{byte:02x}"
    return "%" + "".join(f"[{digit}{digit.upper()}]" if digit.isalpha() else digit for digit in digits)


@dataclass(slots=True)
class Block:
    """Lines of a configuration, in their order."""

    lines: list[str] = field(default_factory=list)

    def add(self, *words: str) -> None:
        """A directive of words that are written as they must be."""
        self.lines.append(f"{' '.join(words)};")

    def comment(self, text: str) -> None:
        for line in text.splitlines():
            self.lines.append(f"# {_UNPRINTABLE.sub(' ', line)}")

    def gap(self) -> None:
        if self.lines and self.lines[-1]:
            self.lines.append("")

    def block(self, head: str, inner: Block) -> None:
        self.gap()
        self.lines += [f"{head} {{", *(f"    {line}" if line else "" for line in inner.lines), "}"]

    def map(self, source: str, target: str, entries: Iterable[tuple[str, str]], *, default: str = '""') -> None:
        """``target`` (a variable's name) by ``source``; the first of the patterns that fits counts."""
        inner = Block()
        inner.add("default", default)
        for key, value in entries:
            inner.add(key, value)
        self.block(f"map {source} ${target}", inner)

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def one_of(names: Sequence[str]) -> str:
    """An expression for exactly one of these."""
    return f"^(?:{'|'.join(re.escape(name) for name in names)})$"
