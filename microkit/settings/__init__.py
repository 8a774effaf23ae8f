"""Settings of a service: typed, from the environment, ``.env`` and a directory of secrets; wrong ones are named.

The service ``billing`` reads ``BILLING_DATABASE_URL`` and so on, and no variable of anybody else. Where several places
give a value the first of these counts: overrides, the environment, ``.env``, the directory of secrets, the default.
A key that no setting has, and every value that does not fit, stop the start with one message that names them all.
"""

from microkit.settings.describe import Setting, describe
from microkit.settings.loading import WrongSettings, load
from microkit.settings.model import Origin, ServiceSettings
from microkit.settings.quantities import Duration, Size
from microkit.settings.values import SecretUrl

__all__ = ["Duration", "Origin", "SecretUrl", "ServiceSettings", "Setting", "Size", "WrongSettings", "describe", "load"]
