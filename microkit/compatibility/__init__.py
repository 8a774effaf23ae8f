"""Whether events stay readable: JSON Schemas and AsyncAPI documents compared, an old one with a new one."""

from microkit.compatibility.check import Finding, Mode, check
from microkit.compatibility.published import EXTENSION

__all__ = ["EXTENSION", "Finding", "Mode", "check"]
