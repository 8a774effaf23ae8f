"""How the settings say how other services are called."""

from __future__ import annotations

import pytest

from microkit.client import Policies
from microkit.contract import Contract, get, post
from microkit.errors import ConfigurationError
from microkit.settings import ServiceSettings, describe, load
from microkit.settings.clients import ClientSettings, OperationSettings


class Audit(Contract, service="audit-log", allow="member"):
    @get("/entries")
    async def entries(self) -> list[str]: ...

    @get("/slow", timeout=30.0, hedge=True, collapse=True)
    async def slow(self) -> list[str]: ...

    @post("/entries")
    async def write(self, body: str) -> None: ...


def settings(**environ: str) -> ServiceSettings:
    return load(ServiceSettings, "payment", environ=environ, env_file=None)


def policies(**environ: str) -> Policies:
    return Policies("audit-log", settings(**environ).clients, 10.0)


def test_a_variable_for_all_one_client_or_one_operation() -> None:
    found = policies(
        PAYMENT_CLIENTS__DEFAULT__TIMEOUT="5s",
        PAYMENT_CLIENTS__AUDIT_LOG__ATTEMPTS="2",
        PAYMENT_CLIENTS__AUDIT_LOG__OPERATIONS__WRITE__TIMEOUT="250ms",
        PAYMENT_CLIENTS__AUDIT_LOG__OPERATIONS__WRITE__RETRY_UNSAFE="false",
        PAYMENT_CLIENTS__BILLING__ATTEMPTS="9",
    )
    entries, write = found.of(Audit.entries), found.of(Audit.write)
    assert (entries.timeout, entries.attempts, entries.repeatable) == (5.0, 2, True)
    assert (write.timeout, write.attempts, write.repeatable) == (0.25, 2, False)


def test_json_and_single_variables_go_together() -> None:
    clients = settings(
        PAYMENT_CLIENTS='{"Audit-Log": {"timeout": "3s", "attempts": 2}}', PAYMENT_CLIENTS__AUDIT_LOG__ATTEMPTS="4"
    ).clients
    assert clients == {"audit_log": ClientSettings(timeout=3.0, attempts=4)}


def test_the_contracts_time_outranks_the_clients_and_its_own_setting_that() -> None:
    client = {"PAYMENT_CLIENTS__AUDIT_LOG__TIMEOUT": "5s"}
    assert policies(**client).of(Audit.slow).timeout == 30.0
    assert policies(**client).of(Audit.entries).timeout == 5.0
    own = {"PAYMENT_CLIENTS__AUDIT_LOG__OPERATIONS__SLOW__TIMEOUT": "7s"}
    assert policies(**client, **own).of(Audit.slow).timeout == 7.0
    assert policies().of(Audit.entries).timeout == 10.0


def test_nothing_is_hedged_or_collapsed_that_does_not_say_so() -> None:
    found = policies()
    assert (found.of(Audit.entries).hedge_after, found.of(Audit.entries).collapse) == (None, False)
    assert (found.of(Audit.slow).hedge_after, found.of(Audit.slow).collapse) == ("p95", True)
    found = policies(PAYMENT_CLIENTS__AUDIT_LOG__HEDGE_AFTER="30ms", PAYMENT_CLIENTS__AUDIT_LOG__COLLAPSE="true")
    assert (found.of(Audit.entries).hedge_after, found.of(Audit.entries).collapse) == (0.03, True)
    assert (found.of(Audit.write).hedge_after, found.of(Audit.write).collapse) == (None, False)


@pytest.mark.parametrize("wish", [{"hedge_after": 0.1}, {"collapse": True}])
def test_what_changes_something_cannot_be_hedged_or_collapsed(wish: dict[str, float]) -> None:
    operations = {"write": OperationSettings.model_validate(wish)}
    found = Policies("audit-log", {"audit_log": ClientSettings(operations=operations)}, 10.0)
    with pytest.raises(ConfigurationError, match=r"Audit\.write changes something"):
        found.of(Audit.write)


def test_an_operation_that_the_contract_has_not_is_told() -> None:
    found = policies(PAYMENT_CLIENTS__AUDIT_LOG__OPERATIONS__READ__TIMEOUT="1s")
    with pytest.raises(ConfigurationError, match="audit-log has no operation read; there are entries, slow, write"):
        found.check([Audit])


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("PAYMENT_CLIENTS__AUDIT_LOG__TIMEOT", "1s", r"PAYMENT_CLIENTS\[audit_log\]\[timeot\]"),
        ("PAYMENT_CLIENTS__AUDIT_LOG__TIMEOUT", "-1s", r"PAYMENT_CLIENTS\[audit_log\]\[timeout\].*250ms"),
        ("PAYMENT_CLIENTS__AUDIT_LOG__TIMEOUT", "0", r"PAYMENT_CLIENTS\[audit_log\]\[timeout\]"),
        ("PAYMENT_CLIENTS__AUDIT_LOG__ATTEMPTS", "0", r"PAYMENT_CLIENTS\[audit_log\]\[attempts\]"),
        ("PAYMENT_CLIENTS__AUDIT_LOG__HEDGE_AFTER", "p99", r"PAYMENT_CLIENTS\[audit_log\]\[hedge_after\]"),
        ("PAYMENT_CLIENTS__AUDIT_LOG__HEDGE_AFTER", "0s", "longer than nothing, or p95"),
        ("PAYMENT_CLIENTS__AUDIT_LOG", "5s", r"PAYMENT_CLIENTS\[audit_log\]"),
        ("PAYMENT_CLIENTS", "fast", "PAYMENT_CLIENTS"),
        ("PAYMENT_CLIENTZ__AUDIT_LOG__TIMEOUT", "1s", "is no setting of payment"),
        ("PAYMENT_BREAKER_STATE_URL", "memcached://there", "begins with redis://"),
    ],
)
def test_a_wrong_one_is_named(key: str, value: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        settings(**{key: value})


def test_what_stands_under_an_unknown_name_may_be_a_secret_and_is_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(PAYMENT_CLIENTS__AUDIT_LOG__PASSWROD="hunter2hunter2")
    assert "PAYMENT_CLIENTS[audit_log][passwrod] (environment) is no setting of payment" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_they_are_shown() -> None:
    shown = {one.key: one.value for one in describe(settings(PAYMENT_CLIENTS__AUDIT_LOG__TIMEOUT="2s"))}
    assert '"audit_log":{"timeout":2.0' in shown["PAYMENT_CLIENTS"]
