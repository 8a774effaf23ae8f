"""From a discovery URL to an adapter, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from microkit.discovery.connect import connect
from microkit.discovery.consul import ConsulOptions
from microkit.discovery.dns import DnsOptions
from microkit.discovery.memory import MemoryRegistry
from microkit.discovery.own import check_advertised, own_endpoint
from microkit.discovery.static import StaticResolver
from microkit.errors import ConfigurationError
from microkit.settings import ServiceSettings, load
from microkit.telemetry import Telemetry

SRV = "_http._tcp.{service}.billpay.svc.cluster.local"


@pytest.mark.parametrize(("url", "kind"), [("memory://", MemoryRegistry), ("static://", StaticResolver)])
def test_a_url_names_an_adapter(url: str, kind: type) -> None:
    assert isinstance(connect(url, Telemetry("test")), kind)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("etcd://127.0.0.1", "etcd:// names no registry"),
        ("secret-token", "it names no registry"),
        ("memory://here", "takes nothing behind it"),
        ("consul://", "takes a host"),
        ("consul://127.0.0.1/v1", "no path"),
        ("consul://127.0.0.1:port", "port"),
        ("consul://somebody@127.0.0.1", "tokens and no users"),
        ("consul://127.0.0.1?ttl=soon", "no duration"),
        ("consul://127.0.0.1?ttl=100ms", "a second at least"),
        ("consul://127.0.0.1?check=tcp", "neither ttl nor http"),
        ("consul://127.0.0.1?deregister_after=30s", "the minute that Consul takes at least"),
        ("consul://127.0.0.1?wait=1h", "between 1s and 10m"),
        ("consul://127.0.0.1?tag=a%22b", "no tag"),
        ("consul://127.0.0.1?tagg=a", "'tagg' is unknown in consul://; it may be one of check, ttl"),
        ("consul://127.0.0.1?ca=/ca.pem", "for consul\\+https"),
        ("dns:///billing.test?port=8000", "no domain name with {service} in it"),
        ("dns:///{service}.test", "hold no port"),
        (f"dns:///{SRV}?port=8000", "leave port= out"),
        ("dns://kube-dns/{service}.test?port=1", "is no address"),
        ("dns:///{service}..test?port=1", "no domain name"),
        ("dns:///{service}.test?port=70000", "no port"),
        ("dns:///{service}.test?port=80&scheme=ftp", "neither http nor https"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_the_reason(url: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=f"discovery_url: .*{told}"):
        connect(url, Telemetry("test"))


def test_what_a_refusal_quotes_holds_no_token() -> None:
    with pytest.raises(ConfigurationError) as refused:
        connect("consull://:s3cret-token@127.0.0.1", Telemetry("test"))
    assert "s3cret" not in str(refused.value)


def test_a_consul_url_says_all_there_is_to_say() -> None:
    url = (
        "consul+https://:t%40ken@[::1]:8501?check=http&interval=5s&deregister_after=2m&wait=30s&dc=eu&tag=a&tag=b&ca=c"
    )
    assert ConsulOptions.from_url(url) == ConsulOptions(
        "::1", 8501, "https", "t@ken", check="http", interval=5.0, deregister_after=120.0, wait=30.0, dc="eu",
        tag=("a", "b"), ca="c",
    )  # fmt: skip


def test_a_dns_url_says_all_there_is_to_say() -> None:
    assert DnsOptions.from_url(f"dns://10.96.0.10:5353/{SRV}?scheme=https&timeout=2s") == DnsOptions(
        SRV, ("10.96.0.10", 5353), None, "https", 2.0
    )


@pytest.mark.parametrize(
    ("url", "package", "extra"), [("consul://127.0.0.1", "consul", "consul"), (f"dns:///{SRV}", "dns", "dns")]
)
def test_a_missing_package_names_the_extra(url: str, package: str, extra: str) -> None:
    code = f"""
import sys
sys.modules[{package!r}] = None
from microkit.discovery.connect import connect
from microkit.telemetry import Telemetry
try:
    connect({url!r}, Telemetry("test"))
except Exception as error:
    print(type(error).__name__, error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.startswith("MissingExtra")
    assert f"microkit[{extra}]" in found.stdout


def test_finding_services_without_a_registry_loads_no_registrys_package() -> None:
    code = """
import sys
from microkit.discovery.connect import connect
from microkit.telemetry import Telemetry
connect("static://", Telemetry("test"))
print(sorted({"consul", "dns", "aiohttp"} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_an_instance_tells_what_its_settings_say() -> None:
    settings = load(
        ServiceSettings,
        "billing",
        overrides={
            "advertised_url": "http://10.0.0.5:3003/", "zone": "eu-1", "tags": ["v2"], "weight": 3,
        },
    )  # fmt: skip
    own = own_endpoint("billing", settings, "http://127.0.0.1:3003")
    assert (own.url, own.id, own.zone, own.tags, own.weight) == (
        "http://10.0.0.5:3003", "billing-10.0.0.5-3003", "eu-1", ("v2",), 3,
    )  # fmt: skip


def test_an_instance_that_listens_everywhere_must_say_where_it_is_reached() -> None:
    settings = load(ServiceSettings, "billing", overrides={"host": "0.0.0.0", "port": 3003})
    with pytest.raises(ConfigurationError, match="BILLING_ADVERTISED_URL is missing"):
        check_advertised(settings)
    check_advertised(
        load(ServiceSettings, "billing", overrides={"host": "0.0.0.0", "advertised_url": "http://10.0.0.5:3003"})
    )


@pytest.mark.parametrize("url", ["10.0.0.5:3003", "ftp://10.0.0.5", "http://10.0.0.5/billing", "http://a:b@10.0.0.5"])
def test_an_advertised_url_has_scheme_host_and_port_only(url: str) -> None:
    with pytest.raises(ConfigurationError, match="BILLING_ADVERTISED_URL"):
        load(ServiceSettings, "billing", overrides={"advertised_url": url})
