"""Settings: flags, environment, defaults."""

from typing import Annotated

import pytest
from msgspec import Meta

from services.gateway.config import Settings
from shared.errors import ConfigError
from shared.settings import BaseSettings, from_values


class Named(BaseSettings, frozen=True, kw_only=True):
    """A setting that is no port."""

    other_url: Annotated[str, Meta(description="a URL")] = ""


@pytest.mark.parametrize("link", ["tcp://10.0.0.1:30000", "udp://10.0.0.1:30000", "sctp://[fd00::1]:1"])
def test_a_kubernetes_service_of_our_name_sets_no_port(link: str) -> None:
    env = {"SAPWOOD_PORT": link, "SAPWOOD_METRICS_PORT": link, "SAPWOOD_HOST": "::"}
    settings = from_values(Settings, {}, env)
    assert (settings.port, settings.metrics_port, settings.host) == (30000, 0, "::")
    assert from_values(Settings, {"port": "1234"}, env).port == 1234
    assert from_values(Named, {}, {"SAPWOOD_OTHER_URL": link}).other_url == link


@pytest.mark.parametrize("value", ["", "http://10.0.0.1", "70000", "tcp"])
def test_any_other_value_that_is_no_port_is_an_error(value: str) -> None:
    with pytest.raises(ConfigError, match=r"--port \(SAPWOOD_PORT\): "):
        from_values(Settings, {}, {"SAPWOOD_PORT": value})
    with pytest.raises(ConfigError, match=r"--port \(SAPWOOD_PORT\): "):
        from_values(Settings, {"port": "tcp://10.0.0.1:30000"}, {})
