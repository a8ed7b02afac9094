"""The connection to the API server: in a pod by its service account, elsewhere by kubeconfig.

A new client is made after every failure. That, and the refresh that the library does by itself each minute,
is what takes up a rotated token and a renewed CA.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import urllib3
from kubernetes.client import ApiClient, ApiException, Configuration, DiscoveryV1Api

from tokenfleet.runtime.discovery.peers import ServiceRef

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SERVICE_LABEL = "kubernetes.io/service-name"

CONNECT_TIMEOUT_S = 5.0
LIST_TIMEOUT_S = 30.0
LIST_PAGE = 500


class ApiError(Exception):
    """The API server answered, and said no. `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Page(NamedTuple):
    """One page of a list; `more` asks for the next one, empty after the last."""

    items: list[dict[str, Any]]
    version: str
    more: str


class SliceApi:
    """Lists and watches the EndpointSlices of one Service. Blocking; belongs to one thread."""

    def __init__(self, service: ServiceRef, account: Path = SERVICE_ACCOUNT) -> None:
        """Raises OSError or kubernetes' ConfigException when there is no way to the API server."""
        self.namespace = service.namespace or _own_namespace(account)
        self._selector = f"{SERVICE_LABEL}={service.service}"
        self._client = ApiClient(_configuration(account))
        self._api = DiscoveryV1Api(self._client)

    def close(self) -> None:
        self._client.rest_client.close()

    def list(self, more: str = "") -> Page:
        """Raises ApiError, urllib3's HTTPError or ValueError."""
        response = self._call(LIST_TIMEOUT_S, limit=LIST_PAGE, **({"_continue": more} if more else {}))
        try:
            told = _json(response.read())
        finally:
            response.release_conn()
        metadata = told.get("metadata") or {}
        return Page(
            told.get("items") or [], metadata.get("resourceVersion", ""), metadata.get("continue", "")
        )

    def watch(self, version: str, seconds: int, patience_s: float) -> urllib3.HTTPResponse:
        """The running response: one JSON event a line for `seconds`, or until it breaks.

        Reading from it fails after `patience_s` without a byte. Raises ApiError or urllib3's HTTPError.
        """
        return self._call(
            patience_s,
            watch=True,
            allow_watch_bookmarks=True,
            resource_version=version,
            timeout_seconds=seconds,
        )

    def _call(self, read_timeout_s: float, **arguments: Any) -> urllib3.HTTPResponse:
        try:
            answered: Any = self._api.list_namespaced_endpoint_slice(
                self.namespace,
                label_selector=self._selector,
                _preload_content=False,
                _request_timeout=(CONNECT_TIMEOUT_S, read_timeout_s),
                **arguments,
            )
        except ApiException as error:
            raise ApiError(error.status or 0, _message(error.body or "")) from error
        response: urllib3.HTTPResponse = answered
        return response


def _own_namespace(account: Path) -> str:
    try:
        return (account / "namespace").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return "default"


def _configuration(account: Path) -> Configuration:
    configuration = Configuration()
    configuration.retries = False  # ours are slower, and logged
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        from kubernetes.config.incluster_config import InClusterConfigLoader

        loader: Any = InClusterConfigLoader  # the library leaves these two untyped
        loader(str(account / "token"), str(account / "ca.crt")).load_and_set(configuration)
    else:
        from kubernetes.config import kube_config

        load: Any = kube_config.load_kube_config
        load(client_configuration=configuration)
    return configuration


def _json(raw: bytes | str) -> dict[str, Any]:
    told = json.loads(raw)
    if not isinstance(told, dict):
        raise ValueError("the API server's answer is no object")
    return told


def _message(body: str) -> str:
    try:
        return str(_json(body).get("message") or "no reason given")
    except ValueError:
        return body[:200] or "no reason given"
