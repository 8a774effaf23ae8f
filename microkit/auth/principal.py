"""Who is calling."""

from __future__ import annotations

from dataclasses import dataclass, field

from microkit.contract import ANYONE, SERVICE, SIGNED_IN


@dataclass(frozen=True, slots=True)
class Principal:
    """The verified caller: a user, or a service in its own name.

    ``subject`` is the user's id, or ``service:payment``. ``token`` is the access token as it came. ``session`` is the
    session that it belongs to (the claim ``sid``), ``""`` where it names none. ``scopes`` are what it is for (the claim
    ``scope``, RFC 8693, 4.2). ``expires_at`` is when the token counts no more, in seconds since 1970, with the leeway
    that the verifier gives clocks; ``None`` where it does not end by itself.
    """

    subject: str
    roles: frozenset[str] = frozenset()
    token: str | None = field(default=None, repr=False)
    session: str = ""
    scopes: frozenset[str] = frozenset()
    expires_at: float | None = field(default=None, compare=False)

    @property
    def is_service(self) -> bool:
        return SERVICE in self.roles

    @property
    def anonymous(self) -> bool:
        return not self.subject

    def may(self, allow: tuple[str, ...]) -> bool:
        """Whether one of the allowed roles is held. A service is no user: ``SIGNED_IN`` takes both."""
        if ANYONE in allow:
            return True
        if self.anonymous:
            return False
        return SIGNED_IN in allow or not self.roles.isdisjoint(allow)


ANONYMOUS = Principal("")
