"""The user service's settings (``USER_…``)."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import EmailStr, Field, SecretStr, model_validator

from microkit.settings import Duration, ServiceSettings

DAY = 86_400.0


class UserSettings(ServiceSettings):
    signing_keys: Annotated[
        SecretStr | None,
        Field(
            description="The private keys of access tokens: a JWKS as JSON, or the path of a file with one. The first "
            "signs, all are published. In development a key is made and kept in the database",
            examples=["/run/secrets/signing-keys.jwks"],
        ),
    ] = None
    access_lifetime: Annotated[Duration, Field(ge=60, le=600, description="Of an access token")] = 600.0
    refresh_lifetime: Annotated[Duration, Field(ge=600, description="A refresh token not used for so long is void")] = (
        7 * DAY
    )
    session_lifetime: Annotated[Duration, Field(ge=600, description="From log-in to the next one, at the latest")] = (
        30 * DAY
    )
    account_attempts: Annotated[int, Field(ge=1, le=100, description="Failed log-ins a minute, an account")] = 5
    address_attempts: Annotated[int, Field(ge=1, le=1000, description="Failed log-ins a minute, an address")] = 20
    registrations: Annotated[int, Field(ge=1, description="Registrations a minute, an address")] = 100
    admin_email: Annotated[EmailStr | None, Field(description="The first administrator; made where there is none")] = (
        None
    )
    admin_password: Annotated[
        SecretStr | None, Field(description="Of the first administrator, who changes it: 16 characters or more")
    ] = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.admin_email is None) != (self.admin_password is None):
            raise ValueError("admin_email and admin_password belong together: set both or none")
        if self.environment == "production" and self.signing_keys is None:
            raise ValueError(
                "signing_keys is missing: in production the keys of access tokens come from the settings. "
                "An example: signing_keys=/run/secrets/signing-keys.jwks"
            )
        return self
