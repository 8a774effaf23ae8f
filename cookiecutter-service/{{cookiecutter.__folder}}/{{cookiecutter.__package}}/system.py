"""What ``microkit up`` starts on a developer's machine: the service, and somebody who issues tokens for it."""

from __future__ import annotations

from microkit import System
from microkit.testing.issuer import dev_issuer

from {{ cookiecutter.__package }}.service import service

system = System("{{ cookiecutter.service_name }}", [service, dev_issuer(port={{ cookiecutter.__issuer_port }})], issuer="dev-issuer")
