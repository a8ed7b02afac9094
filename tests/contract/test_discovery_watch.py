"""The endpoint watch against an API server that fails in every way real ones do."""

import threading
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from structlog.testing import capture_logs

from tests.contract.kube_api import Fault, KubeApi, endpoint, kube_api
from tokenfleet.runtime.discovery import Peer, ServiceRef
from tokenfleet.runtime.discovery.api import SliceApi
from tokenfleet.runtime.discovery.slice_follower import SliceFollower

PATIENCE_S = 20.0


class Following:
    """A follower on its thread, and all that it learnt."""

    def __init__(self, api: KubeApi, port: str = "grpc") -> None:
        self.api = api
        self.learnt: list[dict[str, Peer]] = []
        self._condition = threading.Condition()
        self.follower = SliceFollower(
            ServiceRef("workers", "", port),
            self._learn,
            lambda service: SliceApi(service, api.account),
            watch_s=1,
            silence_s=0.5,
        )
        self.thread = threading.Thread(target=self.follower.run, daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.follower.stop()
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive(), "the thread did not stop"

    @property
    def hosts(self) -> set[str]:
        """The last known peers, without the port that they have in common."""
        return {target.removesuffix(":8084") for target in self.learnt[-1]} if self.learnt else set()

    def until(self, condition: Callable[[], Any]) -> None:
        """Waits; nobody tells when the server's side changes, hence the short naps."""
        with self._condition:
            for _ in range(round(PATIENCE_S / 0.02)):
                if condition():
                    return
                self._condition.wait(0.02)
        raise AssertionError(f"it did not come to that: {self.learnt[-3:]}, {self.api.watches[-3:]}")

    def until_hosts(self, *hosts: str) -> None:
        self.until(lambda: self.learnt and self.hosts == set(hosts))

    def _learn(self, peers: dict[str, Peer]) -> None:
        with self._condition:
            self.learnt.append(peers)
            self._condition.notify_all()


def said(logs: Sequence[MutableMapping[str, Any]], event: str) -> list[MutableMapping[str, Any]]:
    return [log for log in logs if log["event"] == event]


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeApi]:
    with kube_api(tmp_path / "account") as api:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
        api.put("a", endpoint("10.0.0.1", zone="z1"))
        yield api


@pytest.fixture
def following(api: KubeApi) -> Iterator[Following]:
    with Following(api) as following:
        yield following


def test_endpoints_come_change_and_go(api: KubeApi, following: Following) -> None:
    following.until_hosts("10.0.0.1")
    assert following.learnt[-1]["10.0.0.1:8084"] == Peer("10.0.0.1:8084", zone="z1", name="pod-10.0.0.1")
    api.put("b", endpoint("10.0.0.2"))
    following.until_hosts("10.0.0.1", "10.0.0.2")
    api.put("b", endpoint("10.0.0.2", ready=False, serving=True, terminating=True))
    following.until(lambda: following.learnt[-1]["10.0.0.2:8084"].terminating)
    api.delete("b")
    following.until_hosts("10.0.0.1")
    assert api.lists == 1, "everything after the first list is learnt from watching"


def test_other_services_do_not_matter(api: KubeApi, following: Following) -> None:
    following.until_hosts("10.0.0.1")
    api.put("other", endpoint("10.9.9.9"), service="gateway")
    api.put("b", endpoint("10.0.0.2"))
    following.until_hosts("10.0.0.1", "10.0.0.2")


def test_a_list_of_several_pages_is_read_whole(api: KubeApi, following: Following) -> None:
    following.until(lambda: api.watching)
    api.page = 2
    api.status = 500
    api.end_watches()
    for number in range(2, 8):
        api.put(f"s{number}", endpoint(f"10.0.0.{number}"))
    api.forget_history()
    api.status = 0
    following.until_hosts(*(f"10.0.0.{number}" for number in range(1, 8)))


def test_a_watch_that_ends_on_schedule_goes_on_where_it_was(api: KubeApi, following: Following) -> None:
    following.until(lambda: api.watching)
    seen = api.bookmark()
    following.until(lambda: len(api.watches) >= 3)
    assert api.watches[-1] == seen, "the bookmark's version, not an older one"
    api.put("b", endpoint("10.0.0.2"))
    following.until_hosts("10.0.0.1", "10.0.0.2")
    assert api.lists == 1


def test_what_happens_while_the_watch_is_cut_is_not_missed(api: KubeApi, following: Following) -> None:
    following.until(lambda: api.watching)
    api.status = 503
    api.cut_watches()
    following.until(lambda: api.refused >= 2)
    api.put("b", endpoint("10.0.0.2"))
    assert following.hosts == {"10.0.0.1"}
    api.status = 0
    following.until_hosts("10.0.0.1", "10.0.0.2")
    assert api.lists == 1, "the watch resumed; a cut costs no list"


@pytest.mark.parametrize("fault", ["gone", ""])
def test_a_version_too_old_costs_a_list_and_no_peer(api: KubeApi, following: Following, fault: Fault) -> None:
    """As an HTTP status, and as an event in the stream."""
    following.until(lambda: api.watching)
    api.watch_fault = fault
    api.put("b", endpoint("10.0.0.2"))
    following.until_hosts("10.0.0.1", "10.0.0.2")
    api.status = 503
    api.end_watches()
    following.until(lambda: not api.watching)
    api.delete("a")
    api.put("c", endpoint("10.0.0.3"))
    api.forget_history()
    api.status = 0
    following.until_hosts("10.0.0.2", "10.0.0.3")
    assert api.lists == 2
    assert all(following.learnt), "at no time were there no peers"


def test_a_watch_that_falls_silent_is_given_up(api: KubeApi, following: Following) -> None:
    following.until(lambda: api.watching)
    api.watch_fault = "hang"
    before = len(api.watches)
    api.put("b", endpoint("10.0.0.2"))
    following.until(lambda: len(api.watches) > before)
    api.watch_fault = ""
    following.until_hosts("10.0.0.1", "10.0.0.2")
    assert api.lists == 1


def test_an_api_server_that_is_down_at_the_start_is_waited_for(api: KubeApi) -> None:
    api.stop()
    with capture_logs() as logs, Following(api) as following:
        following.until(lambda: said(logs, "endpoints cannot be followed, the last known ones stay"))
        assert not following.learnt
        api.start()
        following.until_hosts("10.0.0.1")


def test_peers_stay_while_the_api_server_is_away(api: KubeApi, following: Following) -> None:
    following.until(lambda: api.watching)
    with capture_logs() as logs:
        api.stop()
        following.until(lambda: said(logs, "endpoints cannot be followed, the last known ones stay"))
        assert following.hosts == {"10.0.0.1"}
        api.put("b", endpoint("10.0.0.2"))
        api.start()
        following.until_hosts("10.0.0.1", "10.0.0.2")
    assert all(following.learnt)


def test_a_missing_permission_names_the_rule_and_heals(api: KubeApi, following: Following) -> None:
    following.until(lambda: api.watching)
    with capture_logs() as logs:
        api.status = 403
        api.end_watches()
        following.until(lambda: [log for log in logs if "remedy" in log])
        (told,) = [log for log in logs if "remedy" in log]
        for word in ("discovery.k8s.io", "endpointslices", "list, watch", "RoleBinding"):
            assert word in told["remedy"]
        assert "forbidden" in told["error"]
        assert following.hosts == {"10.0.0.1"}
        api.put("b", endpoint("10.0.0.2"))
        api.status = 0
        following.until_hosts("10.0.0.1", "10.0.0.2")
        following.until(lambda: said(logs, "endpoints can be followed again"))


def test_a_rotated_token_is_taken_up(api: KubeApi, following: Following) -> None:
    following.until(lambda: api.watching)
    api.mount_token("second")
    api.token = "second"
    api.end_watches()
    api.put("b", endpoint("10.0.0.2"))
    following.until_hosts("10.0.0.1", "10.0.0.2")


def test_a_proxy_that_answers_instead_ends_nothing(api: KubeApi, following: Following) -> None:
    following.until(lambda: api.watching)
    api.watch_fault = "garbage"
    api.end_watches()
    following.until(lambda: api.watch_fault == "")
    api.put("b", endpoint("10.0.0.2"))
    following.until_hosts("10.0.0.1", "10.0.0.2")


def test_a_missing_mount_says_so(api: KubeApi) -> None:
    (api.account / "token").unlink()
    with capture_logs() as logs, Following(api) as following:
        following.until(
            lambda: [log for log in logs if "automountServiceAccountToken" in log.get("remedy", "")]
        )
        api.mount_token("first")
        following.until_hosts("10.0.0.1")


def test_a_port_that_the_service_lacks_is_named(api: KubeApi) -> None:
    with capture_logs() as logs, Following(api, port="web") as following:
        following.until(lambda: following.learnt)
    assert [log["ports"] for log in said(logs, "the Service has no such port")] == [["grpc"]]
