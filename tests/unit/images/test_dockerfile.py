"""The Dockerfile against what it builds: roles, extras, settings, and the promises its header makes."""

import fnmatch
import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tokenfleet.gateway.settings import GatewaySettings
from tokenfleet.model_loader.settings import ModelLoaderSettings
from tokenfleet.router.settings import RouterSettings
from tokenfleet.runtime.settings import ServiceSettings
from tokenfleet.tokenizer.settings import TokenizerSettings
from tokenfleet.worker.settings import WorkerSettings
from tools.images.targets import DOCKERFILE, ROOT, Stage, stages, targets

TEXT = DOCKERFILE.read_text(encoding="utf-8")
STAGES = stages(TEXT)
TARGETS = targets(TEXT)
SETTINGS: dict[str, type[ServiceSettings]] = {
    "gateway": GatewaySettings,
    "tokenizer": TokenizerSettings,
    "router": RouterSettings,
    "model_loader": ModelLoaderSettings,
    "worker": WorkerSettings,
}
ROLES = [target for target in TARGETS if target != "store"]


def lineage(target: str) -> Iterator[Stage]:
    """The target and all stages that it stands on."""
    while target in STAGES:
        yield STAGES[target]
        target = STAGES[target].base


def last(target: str, keyword: str) -> str:
    """The instruction that is in force in the finished image."""
    return next(stage.having(keyword)[-1] for stage in lineage(target) if stage.having(keyword))


def environment(target: str) -> dict[str, str]:
    told: dict[str, str] = {}
    for stage in reversed(list(lineage(target))):
        for line in stage.having("ENV"):
            for part in line.split():
                name, _, value = part.partition("=")
                told[name] = value
    return told


def service(target: str) -> str:
    """The package that the image runs."""
    *_, module = json.loads(last(target, "ENTRYPOINT"))
    return str(module).removeprefix("tokenfleet.")


def test_there_is_a_target_for_each_role() -> None:
    wanted = "gateway tokenizer router model-loader worker-llamacpp worker-vllm worker-trtllm"
    assert set(wanted.split()) <= set(TARGETS)


@pytest.mark.parametrize("target", ROLES)
def test_it_runs_a_service_that_exists(target: str) -> None:
    assert json.loads(last(target, "ENTRYPOINT"))[:2] == ["python", "-m"]
    assert importlib.util.find_spec(f"tokenfleet.{service(target)}.__main__") is not None


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_nobody_in_particular(target: str) -> None:
    assert last(target, "USER") == "10001:10001"


@pytest.mark.parametrize("target", ROLES)
def test_its_environment_is_made_of_settings(target: str) -> None:
    """An unknown one would stop the service at its start."""
    model = SETTINGS[service(target)]
    prefix = str(model.model_config["env_prefix"])
    told = {name.removeprefix(prefix).lower() for name in environment(target) if name.startswith(prefix)}
    assert told, "it would listen to itself alone"
    assert told <= set(model.model_fields)


@pytest.mark.parametrize("target", ROLES)
def test_it_says_which_ports_it_listens_on(target: str) -> None:
    ports = {
        value.rpartition(":")[2] for name, value in environment(target).items() if name.endswith("LISTEN")
    }
    assert ports == set(last(target, "EXPOSE").split())


def test_the_extras_exist_and_each_role_has_its_own() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    used = {}
    for stage in STAGES.values():
        for match in re.finditer(r"install-role dependencies (\S+)", " ".join(stage.instructions)):
            used[stage.name.removeprefix("build-")] = set(match[1].split(","))
    assert set().union(*used.values()) <= extras
    for target in ("gateway", "tokenizer", "router", "model-loader", "worker-llamacpp", "worker-vllm"):
        assert target in used[target], f"{target} does not install its own extra"
    for finder in ("gateway", "router", "model-loader"):
        assert "kubernetes" in used[finder], f"{finder} could not find its peers"


def test_every_base_can_be_pinned() -> None:
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", TEXT.split("FROM", 1)[0], re.MULTILINE))
    for stage in STAGES.values():
        if stage.base in STAGES:
            continue
        name = stage.base.strip("${}")
        assert stage.base == f"${{{name}}}", f"{stage.name} stands on a base that no argument names"
        assert re.search(r":[^/:]*\d[^/:]*$|@sha256:", arguments[name]), f"{name} has no version"


def test_what_is_copied_gets_past_the_ignore_file() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines, "everything else stays out"
    for stage in STAGES.values():
        for line in stage.having("COPY"):
            if line.startswith("--from"):
                continue
            for path in line.split()[:-1]:
                assert any(fnmatch.fnmatch(path, one) or one.startswith(f"{path}/") for one in allowed), (
                    f"{path} is not in the build's context"
                )


def test_the_chart_names_images_that_exist() -> None:
    values = yaml.safe_load((ROOT / "helm/tokenfleet/values.yaml").read_text(encoding="utf-8"))
    named = set(_repositories(values))
    assert named
    assert {name.removeprefix("tokenfleet/") for name in named} <= set(TARGETS)


def _repositories(values: Any) -> Iterator[str]:
    if isinstance(values, dict):
        if isinstance(values.get("repository"), str):
            yield values["repository"]
        for value in values.values():
            yield from _repositories(value)
