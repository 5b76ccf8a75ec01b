"""The compose example keeps its promises, as far as its files tell; it is not started here.

No port but on loopback, no secret of ours, nobody is root, what comes in is only read, and the workers of Dask see what
the scorer sees. Each rule has examples that it must catch.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.settings import ALWAYS
from vae_anomaly.config import load_monitor

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "compose.yml").read_text()
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SECRET = re.compile(r"PASSWORD|AUTH_STRING|TOKEN|SECRET|CONNECTION_URL|STORE_URI")
OURS = "vae-anomaly:"
FILES = ("prefect-worker", "dask-worker")  # who reads and writes batches
REQUIRED = re.compile(r"\$\{[A-Z_]+:\?[^}]+\}")


def faults(compose: dict[str, Any]) -> list[str]:
    """What is wrong with a compose file, one line each."""
    services = compose["services"]
    found = [f"{name}: {fault}" for name, service in services.items() for fault in _of_service(service, compose)]
    one, other = (services[name]["volumes"] for name in FILES)
    if one != other:
        found.append("the scorer and the workers of Dask see different files")
    if services["dask-worker"].get("pid") != "service:prefect-worker":
        found.append("the workers of Dask and the scorer do not see each other's processes")
    if compose["networks"]["inside"] != {"internal": True}:
        found.append("the network between the services is not internal")
    return found


def _of_service(service: dict[str, Any], compose: dict[str, Any]) -> Iterator[str]:
    if not re.fullmatch(r"[\w./-]+:\d[\w.-]*", service["image"]):
        yield "its image has no version"
    for port in service.get("ports", []):
        if not str(port).startswith("127.0.0.1:"):
            yield f"port {port} is open to others"
    if re.match(r"(0|root)?(:|$)", str(service.get("user", ""))):
        yield "it runs as root"
    if service.get("privileged") or service.get("cap_drop") != ["ALL"] or service.get("cap_add"):
        yield "it has privileges"
    if service.get("security_opt") != ["no-new-privileges:true"] or service.get("read_only") is not True:
        yield "it may get privileges or write where it should not"
    for name, value in service.get("environment", {}).items():
        if SECRET.search(name) and not REQUIRED.search(str(value)):
            yield f"{name} has a value of ours"
        if "$" in REQUIRED.sub("", str(value)):
            yield f"{name} may be empty or has a default"
    for volume in service.get("volumes", []):
        source = REQUIRED.sub("", volume).split(":")[0] if volume.startswith("${") else volume.split(":")[0]
        named = source in compose["volumes"]
        if not named and not volume.endswith(":ro"):
            yield f"{volume} can be written"
    if set(service.get("networks", ["default"])) - set(compose["networks"]):
        yield "it is on an unknown network"
    if service.get("network_mode") or (service.get("ports") is None and service.get("networks") != ["inside"]):
        yield "it is reached from outside"
    for needed in service.get("depends_on", {}):
        if needed not in compose["services"]:
            yield f"it needs {needed}, which is not there"


def test_the_example_keeps_the_rules():
    assert faults(COMPOSE) == []


def test_all_parts_are_there():
    assert set(COMPOSE["services"]) == {
        "postgres", "mlflow", "prefect", "prefect-deploy", "prefect-worker", "dask-scheduler", "dask-worker",
    }  # fmt: skip
    assert set(re.findall(r"\$\{(\w+):\?", TEXT)) == {"POSTGRES_PASSWORD", "PREFECT_PASSWORD", "MONITOR", "INBOX"}


def changed(service: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda compose: compose["services"][service].__setitem__(key, value)


def in_environment(service: str, name: str, value: str) -> Callable[[dict[str, Any]], None]:
    return lambda compose: compose["services"][service]["environment"].__setitem__(name, value)


SPOILT = {
    "open port": changed("mlflow", "ports", ["5000:5000"]),
    "open port of another address": changed("mlflow", "ports", ["0.0.0.0:5000:5000"]),
    "root": changed("mlflow", "user", "0:0"),
    "root by name": changed("mlflow", "user", "root"),
    "no user": changed("mlflow", "user", ""),
    "privileged": changed("mlflow", "privileged", True),
    "capability": changed("mlflow", "cap_add", ["SYS_ADMIN"]),
    "writable": changed("mlflow", "read_only", False),
    "latest": changed("postgres", "image", "postgres:latest"),
    "no tag": changed("postgres", "image", "postgres"),
    "secret": in_environment("postgres", "POSTGRES_PASSWORD", "postgres"),
    "secret with a default": in_environment("postgres", "POSTGRES_PASSWORD", "${POSTGRES_PASSWORD:-postgres}"),
    "secret that may be missing": in_environment("postgres", "POSTGRES_PASSWORD", "${POSTGRES_PASSWORD}"),
    "secret in a URL": in_environment("mlflow", "MLFLOW_BACKEND_STORE_URI", "postgresql://monitor:secret@postgres/x"),
    "other files": changed("dask-worker", "volumes", ["output:/srv/elsewhere"]),
    "writable inbox": changed("dask-worker", "volumes", ["${INBOX:?set it}:/srv/inbox", "output:/srv/output"]),
    "other processes": changed("dask-worker", "pid", None),
    "Dask for all": changed("dask-scheduler", "networks", ["inside", "outside"]),
    "the network of the host": changed("dask-scheduler", "network_mode", "host"),
    "way out": lambda compose: compose["networks"].__setitem__("inside", {}),
    "unknown service": changed("mlflow", "depends_on", {"mysql": {"condition": "service_healthy"}}),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_what_breaks_a_rule_is_caught(spoil):
    compose = copy.deepcopy(COMPOSE)
    spoil(compose)
    assert faults(compose)


def test_settings_of_the_monitor_are_settings_that_there_are(monkeypatch):
    """The environment of the scorer gives what it is meant to give."""
    environment = COMPOSE["services"]["prefect-worker"]["environment"]
    for name, value in environment.items():
        if name.startswith("VAE_ANOMALY_"):
            monkeypatch.setenv(name, value)
    monitor = load_monitor(ROOT / "data" / "payments")
    assert (str(monitor.source.inbox), str(monitor.output)) == ("/srv/inbox", "/srv/output")
    assert monitor.execution.engine == "dask:tcp://dask-scheduler:8786"
    mounted = {REQUIRED.sub("", volume).split(":")[1] for volume in COMPOSE["services"]["dask-worker"]["volumes"]}
    assert {"/srv/inbox", "/srv/output"} <= mounted


def test_the_image_has_the_settings_of_the_command_line():
    """Its services are started by Prefect's and MLflow's own commands, which do not read ours."""
    given = dict(re.findall(r"\b([A-Z_]+)=(\S+)", DOCKERFILE))
    assert {name: given.get(name) for name in ALWAYS} == ALWAYS


def installs(dockerfile: str) -> list[str]:
    """Installations by pip that are not from the lock."""
    found = re.findall(r"pip install ([^&|\n]*)", dockerfile)
    return [
        line for line in found if "--no-deps" not in line or not re.search(r"-r locks/|--no-build-isolation \.", line)
    ]


def test_the_image_is_installed_from_the_lock_and_not_run_by_root():
    assert installs(DOCKERFILE) == []
    assert installs("RUN pip install --no-deps -r locks/run.txt && pip install requests\n") == ["requests"]
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)[-1] == COMPOSE["services"]["mlflow"]["user"]
    assert re.match(r"(?:#.*\n|\n)*FROM [\w./-]+:\d\S*\n", DOCKERFILE)


def test_the_image_gets_what_it_copies():
    taken = set(re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()}
    assert copied == taken
    assert all((ROOT / name).exists() for name in copied)


COMMANDS = {  # our services' programs: how each is asked for its options
    "mlflow server": ["-m", "mlflow", "server", "--help"],
    "prefect server start": ["-m", "prefect", "server", "start", "--help"],
    "prefect worker start": ["-m", "prefect", "worker", "start", "--help"],
    "dask scheduler": ["-m", "distributed.cli.dask_scheduler", "--help"],
    "dask worker": ["-m", "distributed.cli.dask_worker", "--help"],
}


def unknown_options(command: list[str], tmp_path: Path) -> list[str]:
    """Options of a service's command that its program does not have."""
    (program,) = [words for name, words in COMMANDS.items() if command[: len(name.split())] == name.split()]
    wide = {"COLUMNS": "200", "PREFECT_HOME": str(tmp_path), "HOME": str(tmp_path), **ALWAYS}
    done = subprocess.run(
        [sys.executable, *program], capture_output=True, text=True, check=True, timeout=120, cwd=tmp_path, env=wide
    )
    return [word for word in command if word.startswith("--") and not re.search(rf"{word}\b", done.stdout)]


@pytest.mark.parametrize(
    "name", [n for n, s in COMPOSE["services"].items() if "command" in s and n != "prefect-deploy"]
)
def test_the_programs_have_the_options_that_are_used(name, tmp_path):
    command = COMPOSE["services"][name]["command"]
    assert unknown_options([*command, "--not-an-option"], tmp_path) == ["--not-an-option"]
