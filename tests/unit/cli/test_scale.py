"""``microkit up --scale``: what is taken, and what is refused."""

from __future__ import annotations

import pytest

from microkit import ConfigurationError, Service, System
from microkit.cli.options import scaled
from microkit.system import another, instance_names

SHOP = System("shop", [Service("depot"), Service("desk"), Service("desk-2")])


def test_services_and_numbers_are_read() -> None:
    assert scaled(["depot=2", "desk=3"]) == {"depot": 2, "desk": 3}


@pytest.mark.parametrize("option", ["depot", "depot=", "=2", "depot=two", "depot=-1", "depot=1.5"])
def test_what_is_no_service_and_number_is_refused(option: str) -> None:
    with pytest.raises(ConfigurationError, match="--scale billing=2"):
        scaled([option])


def test_the_second_instance_has_a_name_of_its_own() -> None:
    names = instance_names(SHOP, {"depot": 3})
    assert names == {"depot": ["depot", "depot-2", "depot-3"], "desk": ["desk"], "desk-2": ["desk-2"]}


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        ({"shelf": 2}, "has no such service, only depot, desk, desk-2"),
        ({"depot": 0}, "one instance at least"),
        ({"desk": 2}, "would be called as the service desk-2"),
    ],
)
def test_what_cannot_be_scaled_is_refused(scale: dict[str, int], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        instance_names(SHOP, scale)


def test_what_only_one_can_have_is_not_shared() -> None:
    first = SHOP.services[0].settings({"advertised_url": "http://pod:80", "instance_id": "one", "port": 3003})
    second = another(first)
    assert (second.port, second.instance_id, second.advertised_url) == (0, None, None)
    assert second.database_url == first.database_url
