"""Billing's settings (``BILLING_…``): those of every service."""

from __future__ import annotations

from microkit.settings import ServiceSettings


class BillingSettings(ServiceSettings): ...
