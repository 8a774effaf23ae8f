"""Says in one sentence what is wrong with the answers, before anything is written."""

import keyword
import re
import sys

SERVICE = {{ cookiecutter.service_name | string | tojson }}
DESCRIPTION = {{ cookiecutter.description | string | tojson }}
RESOURCE = {{ cookiecutter.resource | string | tojson }}
PLURAL = {{ cookiecutter.resource_plural | string | tojson }}
PORT = {{ cookiecutter.port | string | tojson }}
SOURCE = {{ cookiecutter.microkit_source | string | tojson }}

LONGEST_SERVICE = 24
LONGEST_RESOURCE = 18
CONSOLE_PORT = 3900

# Packages that the service itself imports, and programs that have variables like PYTHON_VERSION of their own.
TAKEN = {
    *("aiohttp", "alembic", "anyio", "dev-issuer", "microkit", "mypy", "opentelemetry", "orjson", "prometheus-client"),
    *("pydantic", "pydantic-settings", "pytest", "rich", "ruff", "setuptools", "sqlalchemy", "starlette", "typer"),
    *("docker", "git", "kubernetes", "nox", "pip", "python", "ssh", "test", "tests", "uv", "uvicorn", "uvloop"),
}
CLASSES = {
    *("Annotated", "Base", "BaseModel", "ConfigDict", "Contract", "DateTime", "DeclarativeBase", "Event", "Field"),
    *("Database", "Index", "Integer", "Mapped", "NotFound", "Page", "PageRequest", "Path", "Principal", "Rated"),
    *("RemoteProblem", "Score", "Service", "ServiceSettings", "Settings", "String", "System", "SystemUnderTest"),
    *("Transaction", "Uuid"),
}
PATHS = {"docs", "health", "metrics"}


def trouble():
    """The sentence, None where all is well."""
    return of_service() or of_resource("resource", RESOURCE) or of_resource("resource_plural", PLURAL) or of_rest()


def of_service():
    package = SERVICE.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", SERVICE) or len(SERVICE) > LONGEST_SERVICE:
        return (
            f"service_name {SERVICE!r} must be lower-case words joined by dashes, "
            f"{LONGEST_SERVICE} characters at most, like catalog or price-list."
        )
    if SERVICE in TAKEN or keyword.iskeyword(package) or package in sys.stdlib_module_names:
        return f"service_name {SERVICE!r} is the name of something that Python code imports or runs; choose another."
    return None


def of_resource(question, answer):
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", answer) or len(answer) > LONGEST_RESOURCE:
        return (
            f"{question} {answer!r} must be lower-case words joined by underscores, "
            f"{LONGEST_RESOURCE} characters at most, like product or price_list."
        )
    if as_class(answer) in CLASSES:
        return f"{question} {answer!r} would make a second class {as_class(answer)}; choose another."
    return None


def of_rest():
    if RESOURCE == PLURAL:
        return f"resource_plural {PLURAL!r} must differ from resource, like product and products."
    if PLURAL in PATHS:
        return f"resource_plural {PLURAL!r} would take the path /{PLURAL}, which every service has; choose another."
    one, many = as_class(RESOURCE), as_class(PLURAL)
    if many in {one, f"New{one}", f"{one}Added", f"{one}Row"}:
        return f"resource_plural {PLURAL!r} would make a second class {many}; choose another."
    if not re.fullmatch(r"[1-9][0-9]{3,4}", PORT) or not 1024 <= int(PORT) <= 65534:
        return f"port {PORT!r} must be a number from 1024 to 65534, like 4300."
    if CONSOLE_PORT in (int(PORT), int(PORT) + 1):
        return f"port {PORT} collides with the console of `microkit up`, which has port {CONSOLE_PORT}; choose another."
    if not (DESCRIPTION.strip() and DESCRIPTION.isprintable() and len(DESCRIPTION) <= 100) or set(DESCRIPTION) & set('"\\'):
        return "description must be one line of 100 characters at most, without double quotes and backslashes."
    # Not the bare name: on the public package index it belongs to another project.
    if not re.fullmatch(r"(file:///|https://|git\+(https|ssh|file)://)[^\s\"\\]+", SOURCE):
        return f"microkit_source {SOURCE!r} must be a URL that pip takes, like file:///home/ada/microkit."
    return None


def as_class(words):
    return "".join(word.capitalize() for word in words.split("_"))


found = trouble()
if found is not None:
    sys.exit(found)
