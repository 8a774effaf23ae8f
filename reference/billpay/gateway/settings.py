"""What the gateway can be told beside what every service can."""

from __future__ import annotations

from pydantic import Field

from microkit import ServiceSettings


class GatewaySettings(ServiceSettings):
    cors_origins: list[str] = Field(
        [], description="web pages that may call from browsers", examples=["https://app.billpay.example"]
    )
