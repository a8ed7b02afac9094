"""An API server of one resource: lists and watches EndpointSlices over TLS, and breaks as one is told to.

It speaks what the real one speaks on the wire: resource versions, chunked watches of JSON lines, `Status`
objects for errors, bearer tokens. Versions older than `remembered_from` are gone.
"""

import json
import queue
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import trustme

PATH = "/apis/discovery.k8s.io/v1/namespaces/fleet/endpointslices"
LABEL = "kubernetes.io/service-name"
Fault = Literal["", "hang", "gone", "garbage"]


class KubeApi:
    """The state and the faults. All methods may be called from any thread."""

    def __init__(self, account: Path) -> None:
        """`account`: where to put what a pod finds about its service account."""
        self.account = account
        self.token = "first"
        self.status = 0  # answered to everything instead of doing it
        self.watch_fault: Fault = ""
        self.remembered_from = 0
        self.page = 500
        self.refused = 0
        self.lists = 0
        self.watches: list[int] = []  # the version that each watch began at
        self.port = 0
        self._version = 100
        self._slices: dict[str, dict[str, Any]] = {}
        self._events: list[tuple[int, str, dict[str, Any]]] = []
        self._watchers: list[_Watcher] = []
        self._lock = threading.RLock()
        self._server: _Server | None = None
        self._ca = trustme.CA()
        account.mkdir(parents=True, exist_ok=True)
        self._ca.cert_pem.write_to_path(str(account / "ca.crt"))
        (account / "namespace").write_text("fleet")
        self.mount_token("first")

    # -- what the cluster does ---------------------------------------------------------------------

    def put(self, name: str, *endpoints: dict[str, Any], service: str = "workers", port: int = 8084) -> None:
        """Creates or changes a slice."""
        with self._lock:
            kind = "MODIFIED" if name in self._slices else "ADDED"
            self._slices[name] = {
                "metadata": {"name": name, "labels": {LABEL: service}},
                "addressType": "IPv4",
                "endpoints": list(endpoints),
                "ports": [{"name": "grpc", "port": port, "protocol": "TCP"}],
            }
            self._record(kind, self._slices[name])

    def delete(self, name: str) -> None:
        with self._lock:
            self._record("DELETED", self._slices.pop(name))

    def bookmark(self) -> int:
        """Something unrelated changed, and watchers are told how far they have seen."""
        with self._lock:
            self._version += 10
            self._send("BOOKMARK", {"metadata": {"resourceVersion": str(self._version)}})
            return self._version

    def forget_history(self) -> None:
        """The version at which any present watch would go on is too old."""
        with self._lock:
            self._version += 10
            self.remembered_from = self._version

    def mount_token(self, token: str) -> None:
        """What the kubelet does when it rotates a token."""
        (self.account / "token").write_text(token)

    # -- what goes wrong ---------------------------------------------------------------------------

    def cut_watches(self) -> None:
        """In the middle of a chunk, as when a proxy dies."""
        with self._lock:
            for watcher in self._watchers:
                watcher.cut()

    def end_watches(self) -> None:
        """As the server does on schedule."""
        with self._lock:
            for watcher in self._watchers:
                watcher.events.put(None)

    @property
    def watching(self) -> int:
        with self._lock:
            return len(self._watchers)

    def start(self) -> None:
        """Listens, on the same port as before."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert("127.0.0.1").configure_cert(tls)
        self._server = _Server(self, self.port, tls)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Refuses connections, and drops those there are."""
        if self._server is not None:
            server, self._server = self._server, None
            server.shutdown()
            server.server_close()
            self.cut_watches()

    def kubeconfig(self) -> Path:
        """A file with which any client outside of a pod finds this server."""
        path = self.account / "kubeconfig"
        cluster = {
            "server": f"https://127.0.0.1:{self.port}",
            "certificate-authority": str(self.account / "ca.crt"),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": self.token}}],
        }
        path.write_text(json.dumps(config))
        return path

    # -- the wire ----------------------------------------------------------------------------------

    def answer_list(self, selector: str, after: str) -> dict[str, Any]:
        with self._lock:
            self.lists += 1
            names = sorted(name for name, told in self._slices.items() if _matches(told, selector))
            rest = [name for name in names if name > after]
            shown = rest[: self.page]
            metadata = {"resourceVersion": str(self._version)}
            if len(rest) > len(shown):
                metadata["continue"] = shown[-1]
            return {"metadata": metadata, "items": [self._slices[name] for name in shown]}

    def subscribe(self, watcher: "_Watcher", version: int) -> None:
        with self._lock:
            self.watches.append(version)
            for at, kind, told in self._events:
                if at > version:
                    watcher.tell(kind, told)
            self._watchers.append(watcher)

    def unsubscribe(self, watcher: "_Watcher") -> None:
        with self._lock:
            self._watchers.remove(watcher)

    def _record(self, kind: str, told: dict[str, Any]) -> None:
        self._version += 1
        told = {**told, "metadata": {**told["metadata"], "resourceVersion": str(self._version)}}
        self._events.append((self._version, kind, told))
        self._send(kind, told)

    def _send(self, kind: str, told: dict[str, Any]) -> None:
        for watcher in self._watchers:
            watcher.tell(kind, told)


class _Watcher:
    """One running watch: the chunks to send, None for its orderly end and nothing for a cut."""

    def __init__(self, selector: str) -> None:
        self.events: queue.Queue[bytes | None] = queue.Queue()
        self._selector = selector

    def tell(self, kind: str, told: dict[str, Any]) -> None:
        if kind == "BOOKMARK" or _matches(told, self._selector):
            self.events.put(json.dumps({"type": kind, "object": told}).encode() + b"\n")

    def cut(self) -> None:
        self.events.put(b"half a li")
        self.events.put(b"")


def _matches(told: dict[str, Any], selector: str) -> bool:
    label, _, value = selector.partition("=")
    return bool(told["metadata"]["labels"].get(label) == value)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, api: KubeApi, port: int, tls: ssl.SSLContext) -> None:
        self.api = api
        super().__init__(("127.0.0.1", port), _Handler)
        self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in the middle are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        api: KubeApi = self.server.api  # type: ignore[attr-defined]
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if self.headers.get("Authorization", "").lower() != f"bearer {api.token}":
            self._refuse(401, "Unauthorized")
        elif api.status:
            message = 'endpointslices.discovery.k8s.io is forbidden: User "fleet" cannot list resource'
            api.refused += 1
            self._refuse(api.status, message if api.status == 403 else "the server is not well")
        elif url.path != PATH:
            self._refuse(404, f"there is no {url.path}")
        elif query.get("watch", "").lower() == "true":
            self._watch(api, query)
        else:
            self._answer(200, api.answer_list(query["labelSelector"], query.get("continue", "")))

    def _watch(self, api: KubeApi, query: dict[str, str]) -> None:
        version = int(query["resourceVersion"])
        gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
        too_old = version < api.remembered_from
        if too_old and api.watch_fault == "gone":
            self._answer(410, gone)
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        watcher = _Watcher(query["labelSelector"])
        if too_old:
            watcher.events.put(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
        if api.watch_fault == "garbage":
            api.watch_fault = ""
            watcher.events.put(b"<html>it is the proxy that answers</html>\n")
        api.subscribe(watcher, version)
        ends_at = time.monotonic() + float(query["timeoutSeconds"])
        try:
            self._stream(api, watcher, ends_at)
        finally:
            api.unsubscribe(watcher)
            self.close_connection = True

    def _stream(self, api: KubeApi, watcher: _Watcher, ends_at: float) -> None:
        while True:
            try:
                chunk = watcher.events.get(timeout=max(0.0, ends_at - time.monotonic()))
            except queue.Empty:
                chunk = None
            if not chunk and api.watch_fault != "hang":
                self.wfile.write(b"0\r\n\r\n" if chunk is None else b"")
                return
            if api.watch_fault == "hang":
                ends_at = time.monotonic() + 0.1  # nothing is said any more, not even the end
            elif chunk:
                self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, {"kind": "Status", "code": status, "message": message})

    def _answer(self, status: int, told: dict[str, Any]) -> None:
        raw = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """The test's output is for the test."""


@contextmanager
def kube_api(account: Path) -> Iterator[KubeApi]:
    api = KubeApi(account)
    api.start()
    try:
        yield api
    finally:
        api.stop()


def endpoint(address: str, pod: str = "", zone: str = "", **conditions: bool) -> dict[str, Any]:
    """An entry of a slice; ready unless the conditions say otherwise."""
    pod = pod or f"pod-{address}"
    return {
        "addresses": [address],
        "conditions": {"ready": True, **conditions},
        "zone": zone or None,
        "targetRef": {"kind": "Pod", "name": pod, "uid": f"uid-{pod}"},
    }
