"""Follows one Service's EndpointSlices through everything that ends a watch.

A list gives the state and its version, a watch what changed since. A watch ends all the time: the server
closes it on schedule, a proxy cuts it, a network path swallows it without a word, the version is too old for
the server's memory. Only the last one costs a new list; after the others the watch goes on where it was. In
none of them is a peer forgotten: an API server that cannot be reached says nothing about the endpoints.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import urllib3
from kubernetes.config.config_exception import ConfigException

from tokenfleet.runtime.discovery.api import ApiError, SliceApi
from tokenfleet.runtime.discovery.peers import Peer, ServiceRef
from tokenfleet.runtime.discovery.slices import SliceTable
from tokenfleet.runtime.telemetry import get_logger

# A watch is asked to last so long. One that is silent for so much longer hangs, or the server had ended it.
WATCH_S = 60
SILENCE_S = 10.0
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 15.0
# A watch that ends sooner without having said anything counts as a failure.
SHORTEST_WATCH_S = 1.0

GONE = 410
FORBIDDEN = 403

# What talking to an API server can come to.
_FAILURES = (ApiError, ConfigException, urllib3.exceptions.HTTPError, OSError, ValueError)

log = get_logger(__name__)


class SliceFollower:
    """`run` on a thread of its own; `stop` from any."""

    def __init__(
        self,
        service: ServiceRef,
        learnt: Callable[[dict[str, Peer]], None],
        connect: Callable[[ServiceRef], SliceApi] = SliceApi,
        *,
        watch_s: int = WATCH_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        """`learnt` is called on the follower's thread with all peers, whenever something was said."""
        self._service = service
        self._learnt = learnt
        self._connect = connect
        self._watch_s = watch_s
        self._silence_s = silence_s
        self._table = SliceTable(service.port)
        self._version = ""  # empty: list before watching
        self._pause_s = FIRST_PAUSE_S
        self._failing = ""  # what was last logged
        self._portless = False
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._response: urllib3.HTTPResponse | None = None

    def run(self) -> None:
        """Until stopped; no failure ends it."""
        while not self._stopping.is_set():
            try:
                api = self._connect(self._service)
                try:
                    self._follow(api)
                finally:
                    api.close()
            except _FAILURES as error:
                self._failed(error)
            except Exception:
                log.exception("endpoint watch failed", service=str(self._service))
                self._version = ""
                self._rest()

    def stop(self) -> None:
        """Wakes the thread wherever it waits."""
        self._stopping.set()
        with self._lock:
            if self._response is not None:
                self._response.shutdown()

    def _follow(self, api: SliceApi) -> None:
        """Until something fails or the version is too old."""
        while not self._stopping.is_set():
            if not self._version:
                self._list(api)
            began = time.monotonic()
            try:
                events = self._watch(api)
            except ApiError as error:
                if error.status != GONE or not self._version:
                    raise
                log.info("watch too old, listing again", service=str(self._service))
                self._version = ""
                self._rest()
                continue
            if not events and time.monotonic() - began < SHORTEST_WATCH_S:
                self._rest()

    def _list(self, api: SliceApi) -> None:
        page = api.list()
        items = list(page.items)
        while page.more:
            page = api.list(page.more)
            items += page.items
        self._table.replace(items)
        self._version = page.version
        self._answered()
        self._tell()

    def _watch(self, api: SliceApi) -> int:
        """One watch to its end; answers how many events it brought."""
        seconds = round(self._watch_s * random.uniform(0.9, 1.0)) or 1
        response = api.watch(self._version, seconds, seconds + self._silence_s)
        with self._lock:
            self._response = response
        self._answered()
        began, events = time.monotonic(), 0
        try:
            for event in _events(response):
                if self._stopping.is_set():
                    break
                self._take(event)
                events += 1
        finally:
            with self._lock:
                self._response = None
            response.close()
            if time.monotonic() - began >= SHORTEST_WATCH_S:
                self._pause_s = FIRST_PAUSE_S
        return events

    def _take(self, event: dict[str, Any]) -> None:
        kind, told = event.get("type"), event.get("object") or {}
        if kind == "ERROR":
            raise ApiError(int(told.get("code") or 0), str(told.get("message") or "the watch failed"))
        self._version = told["metadata"]["resourceVersion"]
        self._pause_s = FIRST_PAUSE_S
        if kind != "BOOKMARK":
            self._table.apply(str(kind), told)
            self._tell()

    def _tell(self) -> None:
        peers = self._table.peers()
        names = self._table.port_names()
        portless = not peers and bool(names) and self._service.port not in names
        if portless and not self._portless:
            log.warning("the Service has no such port", service=str(self._service), ports=names)
        self._portless = portless
        self._learnt(peers)

    def _answered(self) -> None:
        if self._failing:
            log.info("endpoints can be followed again", service=str(self._service))
        self._failing = ""

    def _failed(self, error: Exception) -> None:
        if self._stopping.is_set():
            return
        told = str(error)
        if told != self._failing:
            self._failing = told
            log.warning(
                "endpoints cannot be followed, the last known ones stay",
                service=str(self._service),
                error=told,
                **_remedy(error, self._service),
            )
        self._rest()

    def _rest(self) -> None:
        """Longer each time, until an event or a lasting watch shows that it works."""
        self._stopping.wait(self._pause_s * random.uniform(0.8, 1.2))
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)


def _events(response: urllib3.HTTPResponse) -> Iterator[dict[str, Any]]:
    rest = b""
    for chunk in response.stream(65536):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _remedy(error: Exception, service: ServiceRef) -> dict[str, str]:
    if isinstance(error, ApiError) and error.status == FORBIDDEN:
        where = f"namespace {service.namespace}" if service.namespace else "its namespace"
        return {
            "remedy": "give this pod's service account a Role with apiGroups [discovery.k8s.io], resources "
            f"[endpointslices], verbs [list, watch] in {where}, and a RoleBinding"
        }
    if isinstance(error, ConfigException):
        return {
            "remedy": "in a pod, let its service account's token be mounted "
            "(automountServiceAccountToken: true); elsewhere, set KUBECONFIG"
        }
    return {}
