"""The admin endpoints of an instance: on a port of their own, for operators and their monitoring."""

from microkit.admin.app import admin_app
from microkit.admin.endpoints import Seen

__all__ = ["Seen", "admin_app"]
