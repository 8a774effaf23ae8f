"""Finding the system that a command is about."""

from __future__ import annotations

import importlib
import sys
import tomllib
import traceback
from pathlib import Path

from microkit.errors import ConfigurationError, MicrokitError
from microkit.redaction import redact_text
from microkit.service import Service
from microkit.system import System


def load_system(given: str | None) -> tuple[str, System]:
    """The system named ``module:variable``, or else the one that ``[tool.microkit]`` names, and its name.

    The folder of the pyproject.toml (or the current one) is importable, as it is for ``python -m``.

    Raises:
        ConfigurationError: none is named, or it cannot be loaded.
    """
    project = _project()
    reference = given or _configured(project)
    module_name, _, variable = reference.partition(":")
    if not module_name or not variable:
        raise ConfigurationError(f"{reference!r} names no system: write module:variable, like shop.system:system")
    root = str(project.parent if project else Path.cwd())
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise ConfigurationError(_missing(module_name, error.name or str(error))) from error
        raise ConfigurationError(f"There is no module {module_name!r} (looked in {root} and on the path)") from None
    except MicrokitError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"{module_name} cannot be loaded: {_told(error)}") from error
    system = getattr(module, variable, None)
    if not isinstance(system, System):
        found = f"a {type(system).__name__}" if system is not None else "not there"
        raise ConfigurationError(f"{reference}: {variable!r} is {found}; it must be a microkit System")
    return reference, system


def find_service(system: System, name: str) -> Service:
    """The system's service of that name.

    Raises:
        ConfigurationError: it has none.
    """
    for service in system.services:
        if service.name == name:
            return service
    names = ", ".join(service.name for service in system.services)
    raise ConfigurationError(f"{system.name} has no service {name!r}; it has: {names}")


def _project() -> Path | None:
    """The nearest pyproject.toml at or above the current folder."""
    here = Path.cwd()
    return next((path for folder in (here, *here.parents) if (path := folder / "pyproject.toml").is_file()), None)


def _configured(project: Path | None) -> str:
    if project is not None:
        try:
            found = tomllib.loads(project.read_text("utf-8")).get("tool", {}).get("microkit", {}).get("system")
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigurationError(f"{project} cannot be read: {error}") from None
        except AttributeError:
            raise ConfigurationError(
                f'{project}: [tool.microkit] is a table; write system = "shop.system:system"'
            ) from None
        if isinstance(found, str):
            return found
    raise ConfigurationError(
        "Which system? Name it (microkit up shop.system:system), or write it into pyproject.toml: "
        '[tool.microkit] system = "shop.system:system"'
    )


def _told(error: BaseException) -> str:
    """What was raised, and where, on one line."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):
        return redact_text(f"{error.filename}:{error.lineno}: {error.msg}")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    where = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    return redact_text(where + " ".join(what.split())[:500])


def _missing(module: str, package: str) -> str:
    return f"{module} needs the module {package!r}, which is not installed"
