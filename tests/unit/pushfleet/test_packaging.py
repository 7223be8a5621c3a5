"""What the project is shipped with: the compose file, the image, the table of dependencies."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from dispatcher.settings import DispatcherSettings
from gateway_node.settings import GatewaySettings
from shared.settings import load

TOP = Path(__file__).parents[3]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())


def compose() -> dict[str, Any]:
    """The compose file with variables at their defaults."""
    text = (TOP / "docker-compose.rocketmq.yml").read_text()
    loaded: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))
    return loaded


def test_the_compose_file_holds_a_whole_cluster() -> None:
    """Name server, broker, store, two nodes and a dispatcher, each with a health check."""
    services = compose()["services"]
    assert {"name-server", "broker", "valkey", "node-1", "node-2", "dispatcher"} == set(services)
    assert all(service["healthcheck"]["test"] for service in services.values())


def test_the_broker_is_told_the_address_that_it_has() -> None:
    """brokerIP1 is what the name server tells clients: it must lead to the container."""
    address = compose()["services"]["broker"]["networks"]["cluster"]["ipv4_address"]
    assert f"brokerIP1={address}\n" in (TOP / "deploy" / "broker.conf").read_text()


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_a_node_advertises_the_port_that_is_published(node: str) -> None:
    """Clients reach the node at its nodeId, from outside the containers."""
    service = compose()["services"][node]
    host, outer, inner = service["ports"][0].rsplit(":", 2)
    assert f"{host}:{outer}" == service["environment"]["PUSH_NODE_ADVERTISE"]
    assert inner == service["environment"]["PUSH_NODE_PORT"]


@pytest.mark.parametrize(
    ("service", "settings"),
    [("node-1", GatewaySettings), ("node-2", GatewaySettings), ("dispatcher", DispatcherSettings)],
)
def test_the_roles_take_the_environment_they_are_given(service: str, settings: type) -> None:
    """Every variable is one the role reads, and together they are good."""
    environment = compose()["services"][service]["environment"]
    known = {field.metadata["variable"] for field in dataclasses.fields(cast(Any, settings))}
    assert set(environment) <= known
    load(settings, environ=environment)


def test_the_image_runs_as_nobody_special() -> None:
    """The last user of the image is not root."""
    users = re.findall(r"^USER (\S+)", (TOP / "deploy" / "Dockerfile").read_text(), re.MULTILINE)
    assert ["pushfleet"] == users


def test_every_dependency_has_a_reason() -> None:
    """docs/dependencies.md names what pyproject.toml names, and nothing else."""
    wanted = [*PROJECT["project"]["dependencies"]]
    wanted += [one for group in PROJECT["dependency-groups"].values() for one in group]
    wanted += [one for extra in PROJECT["project"]["optional-dependencies"].values() for one in extra]
    text = (TOP / "docs" / "dependencies.md").read_text()
    rows = re.findall(r"^\| ([a-z][\w-]*(?:, [\w-]+)*) \| \S", text, re.MULTILINE)
    reasoned = {name for row in rows for name in row.split(", ")} - {"package"}
    assert {re.split(r"[<>=\[ ]", line)[0] for line in wanted} == reasoned
