"""The launcher's list of the services' flags against the services' own settings."""

import argparse
from importlib import import_module

import msgspec
import pytest

from services.launcher.flags import MANAGED, SERVICE_FLAGS, ServeSettings, add_serve_flags, passed_on
from shared.registry import SERVICES
from shared.settings import _plain, from_values


def settings_of(service: str) -> type[msgspec.Struct]:
    return import_module(f"services.{service}.config").Settings


def fields_of(service: str) -> dict[str, msgspec.structs.FieldInfo]:
    fields = msgspec.structs.fields(settings_of(service))
    return {field.encode_name.replace("_", "-"): field for field in fields}


@pytest.mark.parametrize("service", SERVICES)
def test_every_flag_of_a_service_can_be_given_to_serve(service: str) -> None:
    known = {flag.name for flag in SERVICE_FLAGS if service in flag.services}
    known |= {name for name, takers in MANAGED.items() if service in takers}
    known |= {"redis-url"}  # by the environment
    assert known == set(fields_of(service))


@pytest.mark.parametrize("service", SERVICES)
def test_switches_are_the_services_booleans(service: str) -> None:
    fields = fields_of(service)
    for flag in SERVICE_FLAGS:
        if service in flag.services:
            assert flag.is_switch == (_plain(fields[flag.name].type) is bool), flag.name


@pytest.mark.parametrize("service", SERVICES)
def test_defaults_that_launcher_and_service_both_have_agree(service: str) -> None:
    decided_by_the_launcher = {"redis_url", "log_level", "instance", "drain_timeout_s", "model_path"}
    own = {field.name: field.default for field in msgspec.structs.fields(ServeSettings)}
    for field in msgspec.structs.fields(settings_of(service)):
        if field.name in own and field.name not in decided_by_the_launcher:
            assert field.default == own[field.name], field.name


def parse(*argv: str) -> dict[str, object]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_serve_flags(parser)
    return vars(parser.parse_args(argv))


def test_a_flag_goes_to_the_services_that_take_it() -> None:
    flags = parse("--dtype", "float32", "--port=30001")
    assert passed_on("gpu_worker", flags) == ["--dtype=float32"]
    assert passed_on("gateway", flags) == []
    assert from_values(ServeSettings, flags, env={}).port == 30001


def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--dtpye", "float32")
    assert "--dtpye" in capsys.readouterr().err
