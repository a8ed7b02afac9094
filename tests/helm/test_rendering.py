"""Every values file, by real Helm, at both ends of the supported range of Kubernetes."""

import os

import kubernetes_validate
import pytest
import yaml

from tests.helm.rendering import (
    CHART,
    NEWEST,
    OLDEST,
    RELEASE,
    VALUES,
    label,
    manifest,
    objects,
    run_helm,
    template,
)

GOLDEN = CHART.parents[1] / "tests" / "helm" / "golden"
# The goldens show what a user gets and what every branch gives; the others differ from those in little.
GOLDENS = ("cpu", "gpu-multizone", "every-branch", "external-store", "bare")

VERSIONS = (OLDEST, NEWEST)


def test_every_values_file_is_checked() -> None:
    files = {str(file.relative_to(CHART)) for file in CHART.rglob("values-*.yaml")}
    assert files <= {file for names in VALUES.values() for file in names}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", VALUES)
def test_lints(name: str, version: str) -> None:
    flags = [flag for file in VALUES[name] for flag in ("--values", file)]
    ended = run_helm("lint", ".", "--strict", "--kube-version", version, *flags)
    assert ended.code == 0, ended.out + ended.err


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", VALUES)
def test_is_what_kubernetes_accepts(name: str, version: str) -> None:
    rendered = objects(name, version)
    assert len(rendered) > 20
    for one in rendered:
        try:
            kubernetes_validate.validate(one, version, strict=True)
        except kubernetes_validate.ValidationError as problem:
            pytest.fail(f"{label(one)}: {problem.message} at {list(problem.path)}")


def test_an_older_kubernetes_is_refused() -> None:
    ended = template(version="1.29.9")
    assert ended.code != 0
    assert "requires kubeVersion" in ended.err


@pytest.mark.parametrize("name", VALUES)
def test_is_the_same_on_every_supported_kubernetes(name: str) -> None:
    assert manifest(name, OLDEST) == manifest(name, NEWEST)


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name: str) -> None:
    """A change of what is rendered is seen in review. `make helm-golden` accepts it."""
    golden = GOLDEN / f"{name}.yaml"
    rendered = _readable(name)
    if os.environ.get("HELM_GOLDEN") == "write":
        golden.write_text(rendered, encoding="utf-8")
    assert rendered == golden.read_text(encoding="utf-8"), "run `make helm-golden` and look at the difference"


def test_no_golden_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.glob("*.yaml")} == set(GOLDENS)


def _readable(name: str) -> str:
    """Without comments and in one order, so that only what Kubernetes gets makes a difference."""
    ordered = sorted(objects(name), key=label)
    return "---\n".join(yaml.safe_dump(one, allow_unicode=True, width=110) for one in ordered)


@pytest.mark.parametrize("length", [1, 53])
def test_names_stay_valid_for_every_length_of_a_release(length: int) -> None:
    """Services allow 63 characters, releases 53."""
    release = "r" * length
    ended = run_helm("template", release, ".", "--values", "values-cpu.yaml")
    assert ended.code == 0, ended.err
    for one in filter(None, yaml.safe_load_all(ended.out)):
        assert len(one["metadata"]["name"]) <= 63
        assert release[:40] in one["metadata"]["name"]


def test_a_release_named_like_the_chart_is_not_named_twice() -> None:
    ended = run_helm("template", "tokenfleet", ".")
    assert ended.code == 0, ended.err
    assert "tokenfleet-tokenfleet" not in ended.out


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("default", ["There are no workers", "Everybody who reaches the gateway"]),
        ("bare", ["No pool can run smollm2-135m-instruct", "There is no store", "NetworkPolicies are off"]),
        ("every-branch", ["EXTERNAL-IP:8000"]),
    ],
)
def test_notes_tell_what_is_still_to_do(name: str, told: list[str]) -> None:
    flags = [flag for file in VALUES[name] for flag in ("--values", file)]
    ended = run_helm("install", RELEASE, ".", "--dry-run=client", *flags)
    assert ended.code == 0, ended.err
    notes = ended.out.partition("NOTES:")[2]
    assert "[ ] One real request" in notes
    for words in told:
        assert words in notes
