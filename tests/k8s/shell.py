"""helm and kubectl against one cluster and one namespace."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHOWN_LINES = 40


class StepFailed(Exception):
    """The message says what was found instead of what was to be."""


class StepSkipped(Exception):
    """The message says what of this cluster does not let the step be done."""


@dataclass(frozen=True)
class Cluster:
    """Whom to ask, and where the release lives."""

    kubeconfig: str
    helm_binary: Path
    kubectl_binary: str
    namespace: str
    release: str

    @property
    def selector(self) -> str:
        return f"app.kubernetes.io/instance={self.release}"

    def helm(self, *arguments: str, timeout_s: float = 900) -> str:
        return self._run([str(self.helm_binary), "--namespace", self.namespace, *arguments], timeout_s)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 600) -> str:
        return self._run([self.kubectl_binary, "--namespace", self.namespace, *arguments], timeout_s, stdin)

    def get(self, *arguments: str) -> list[dict[str, Any]]:
        """The objects of `kubectl get …`."""
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", *arguments, "--output=json"))["items"]
        return items

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """A kubectl that goes on by itself."""
        command = [self.kubectl_binary, "--namespace", self.namespace, *arguments]
        return subprocess.Popen(
            command, env=self._environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": self.kubeconfig}

    def _run(self, command: list[str], timeout_s: float, stdin: str | None = None) -> str:
        what = " ".join(Path(part).name if part is command[0] else part for part in command[:6])
        try:
            done = subprocess.run(
                command,
                env=self._environment,
                capture_output=True,
                text=True,
                input=stdin,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StepFailed(f"{what} … did not end within {timeout_s:g} s") from error
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_SHOWN_LINES:])
            raise StepFailed(f"{what} … ended with {done.returncode}:\n{said}")
        return done.stdout
