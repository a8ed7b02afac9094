"""What is done to the fleet, and what has to be found afterwards."""

import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import openai

from tests.k8s.drain import busiest_node, drained
from tests.k8s.load import Outcome, under_load
from tests.k8s.shell import Cluster, StepFailed

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "tokenfleet"
VALUES = Path(__file__).with_name("values.yaml")
MODEL = "sim"
COMPONENTS = ("worker", "tokenizer", "router", "model-loader", "gateway")
_VALUE_KEYS = ("gateway", "tokenizer", "router", "modelLoader", "workerDefaults")
WAIT = "10m"

Step = tuple[str, Callable[[], str]]


class Fleet:
    """One release, from its installation to its end."""

    def __init__(self, cluster: Cluster, environment: Mapping[str, str]) -> None:
        """`environment`: IMAGE_REGISTRY, IMAGE_TAG, IMAGE_PULL_POLICY and E2E_VALUES, each optional."""
        self.cluster = cluster
        self._registry = environment.get("IMAGE_REGISTRY", "")
        self._tag = environment.get("IMAGE_TAG", "")
        self._pull = environment.get("IMAGE_PULL_POLICY", "IfNotPresent")
        self._values = environment.get("E2E_VALUES") or str(VALUES)

    def steps(self) -> Iterator[Step]:
        yield "install", self.install
        yield "helm test", self.helm_test
        yield "stream an answer to the stock OpenAI client", self.stream
        for component in COMPONENTS:
            yield f"restart {component} under load", partial(self.restart, component)
        yield "drain a node under load", self.drain
        yield "drain the next node under load", self.drain  # which has more than its share now
        yield "upgrade under load", self.upgrade
        yield "roll back under load", self.roll_back
        yield "uninstall", self.uninstall

    def image(self, target: str) -> str:
        """The name that the chart makes."""
        prefix = f"{self._registry.rstrip('/')}/" if self._registry else ""
        return f"{prefix}tokenfleet/{target}:{self._tag or _app_version()}"

    # -- the steps ---------------------------------------------------------------------------------

    def install(self) -> str:
        self.cluster.kubectl("create", "namespace", self.cluster.namespace)
        self._upgrade("--install")
        return f"{sum(len(self._of('pods', component)) for component in COMPONENTS)} pods ready"

    def helm_test(self) -> str:
        self.cluster.helm("test", self.cluster.release, "--timeout", WAIT)
        return ""

    def stream(self) -> str:
        with self._forwarded() as url:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=60, max_retries=0)
            stream = client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": "Tell me a story"}],
                max_tokens=32,
                stream=True,
                stream_options={"include_usage": True},
            )
            tokens, pieces = 0, 0
            for chunk in stream:
                pieces += bool(chunk.choices and chunk.choices[0].delta.content)
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        if tokens != 32 or pieces < 2:
            raise StepFailed(f"{tokens} tokens in {pieces} pieces arrived, 32 were asked for")
        return f"{tokens} tokens in {pieces} pieces"

    def restart(self, component: str) -> str:
        names = [item["metadata"]["name"] for item in self._of("deployment", component)]
        with self._load() as outcome:
            before = self._uids(component)
            for name in names:
                self.cluster.kubectl("rollout", "restart", f"deployment/{name}")
            self._rolled_out(names)
            self._gone(component, before)
        return f"{outcome.requests} requests, none lost"

    def drain(self) -> str:
        node = busiest_node(self.cluster)
        with self._load() as outcome, drained(self.cluster, node) as drain:
            self._rolled_out(list(drain.fewest))
        told = f"{drain.moved} pods left {node}, budgets put off {drain.refused} evictions"
        return f"{told}; {outcome.requests} requests, none lost"

    def upgrade(self) -> str:
        with self._load() as outcome:
            # a change in every pod's template
            changed = [f"{key}.podAnnotations.tokenfleet-e2e=upgraded" for key in _VALUE_KEYS]
            self._upgrade(*(part for one in changed for part in ("--set-string", one)))
        self._expect_annotation("upgraded")
        return f"{outcome.requests} requests, none lost"

    def roll_back(self) -> str:
        with self._load() as outcome:
            self.cluster.helm("rollback", self.cluster.release, "1", "--wait", "--timeout", WAIT)
        self._expect_annotation("")
        return f"{outcome.requests} requests, none lost"

    def uninstall(self) -> str:
        self.cluster.helm("uninstall", self.cluster.release, "--wait", "--timeout", WAIT)
        left = self._left_over()
        deadline = time.monotonic() + 120
        while left and time.monotonic() < deadline:
            time.sleep(2)
            left = self._left_over()
        if left:
            raise StepFailed(f"these were left: {', '.join(left)}")
        return "nothing left"

    def clean_up(self) -> str:
        self.cluster.kubectl(
            "delete", "namespace", self.cluster.namespace, "--ignore-not-found", "--timeout=180s"
        )
        return ""

    def findings(self) -> str:
        """What an operator would look at first."""
        try:
            pods = self.cluster.kubectl("get", "pods", "--output=wide")
            events = self.cluster.kubectl("get", "events", "--sort-by=.lastTimestamp").splitlines()[-25:]
            return "\n".join([pods, *events])
        except StepFailed as error:
            return f"nothing more to be learnt: {error}"

    # -- how ---------------------------------------------------------------------------------------

    def _upgrade(self, *arguments: str) -> None:
        settings = {"image.registry": self._registry, "image.tag": self._tag, "image.pullPolicy": self._pull}
        told = [
            part for key, value in settings.items() if value for part in ("--set-string", f"{key}={value}")
        ]
        self.cluster.helm(
            *("upgrade", self.cluster.release, str(CHART), "--values", self._values, *told, *arguments),
            *("--wait", "--timeout", WAIT),
        )

    def _load(self) -> AbstractContextManager[Outcome]:
        service = self._service()
        port = next(port["port"] for port in service["spec"]["ports"] if port["name"] == "http")
        url = f"http://{service['metadata']['name']}.{self.cluster.namespace}.svc:{port}"
        return under_load(self.cluster, url, MODEL, self.image("gateway"))

    def _of(self, kind: str, component: str) -> list[dict[str, Any]]:
        """The release's objects of that kind and component; there has to be one."""
        selector = f"{self.cluster.selector},app.kubernetes.io/component={component}"
        found = self.cluster.get(kind, f"--selector={selector}")
        if not found:
            raise StepFailed(f"the release has no {kind} of {component}")
        return found

    def _service(self) -> dict[str, Any]:
        return self._of("service", "gateway")[0]

    def _uids(self, component: str) -> set[str]:
        return {pod["metadata"]["uid"] for pod in self._of("pods", component)}

    def _rolled_out(self, deployments: list[str]) -> None:
        """Waits until all their pods are there and ready."""
        for name in deployments:
            self.cluster.kubectl("rollout", "status", f"deployment/{name}", f"--timeout={WAIT}")

    def _gone(self, component: str, before: set[str]) -> None:
        """Waits until the last of the former pods has ended: until then it may lose something."""
        deadline = time.monotonic() + 300
        while before & self._uids(component):
            if time.monotonic() > deadline:
                raise StepFailed(f"a former pod of {component} does not end")
            time.sleep(1)

    def _expect_annotation(self, value: str) -> None:
        for component in COMPONENTS:
            for item in self._of("deployment", component):
                annotations = item["spec"]["template"]["metadata"].get("annotations", {})
                if annotations.get("tokenfleet-e2e", "") != value:
                    raise StepFailed(f"{item['metadata']['name']} is annotated {annotations}, not {value!r}")

    def _left_over(self) -> list[str]:
        """Everything of the release, of whatever kind, cluster-wide kinds included."""
        left: list[str] = []
        for scope in ("true", "false"):
            kinds = self.cluster.kubectl(
                "api-resources", f"--namespaced={scope}", "--verbs=list,delete", "--output=name"
            ).split()
            kinds = [kind for kind in kinds if not kind.startswith("events")]
            arguments = (",".join(kinds), f"--selector={self.cluster.selector}", "--ignore-not-found")
            left += self.cluster.kubectl("get", *arguments, "--output=name").split()
        return left

    @contextmanager
    def _forwarded(self) -> Iterator[str]:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            port = holder.getsockname()[1]
        forward = self.cluster.popen(
            "port-forward", f"service/{self._service()['metadata']['name']}", f"{port}:http"
        )
        try:
            _until_listening(port, forward)
            yield f"http://127.0.0.1:{port}"
        finally:
            forward.terminate()
            forward.wait(10)


def _until_listening(port: int, forward: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError as error:
            if forward.poll() is not None or time.monotonic() > deadline:
                raise StepFailed("the Service's port could not be forwarded") from error
            time.sleep(0.2)


def _app_version() -> str:
    lines = (CHART / "Chart.yaml").read_text(encoding="utf-8").splitlines()
    return next(line.split(":")[1].strip(' "') for line in lines if line.startswith("appVersion"))
