from pathlib import Path
from typing import Any

import pytest

from tokenfleet.cli.local_fleet.spec import FleetSpec, Layout, ProcessSpec, plan


def planned(**changes: Any) -> dict[str, ProcessSpec]:
    spec = FleetSpec(state_dir=Path("/state"), **changes)
    services = [name for name in spec.process_names() if name != "store"]
    layout = Layout(
        http="127.0.0.1:8080",
        grpc={name: f"127.0.0.1:{9000 + number}" for number, name in enumerate(services)},
        metrics={name: f"127.0.0.1:{9100 + number}" for number, name in enumerate(services)},
        store_socket=Path("/state/store.sock"),
        store_data=Path("/state/store"),
    )
    return {process.name: process for process in plan(spec, layout)}


def flag(process: ProcessSpec, name: str) -> str:
    """The value that wins: the last one."""
    positions = [index for index, part in enumerate(process.command) if part == name]
    return process.command[positions[-1] + 1]


def test_the_default_fleet() -> None:
    names = "store model-loader router worker-0 worker-1 tokenizer-0 tokenizer-1 gateway"
    assert list(planned()) == names.split()


def test_everybody_is_told_where_the_others_are() -> None:
    processes = planned(workers=3, tokenizers=1)
    workers = ",".join(processes[f"worker-{number}"].address for number in range(3))
    assert flag(processes["router"], "--workers") == workers
    assert flag(processes["model-loader"], "--workers") == workers
    assert flag(processes["model-loader"], "--store") == "unix:///state/store.sock"
    assert flag(processes["gateway"], "--routers") == processes["router"].address
    assert flag(processes["gateway"], "--tokenizers") == processes["tokenizer-0"].address
    for name in ("gateway", "router", "tokenizer-0"):
        assert flag(processes[name], "--loader") == processes["model-loader"].address
    for process in list(processes.values())[1:]:
        assert flag(process, "--listen") == process.address


def test_routers_are_numbered_when_there_are_several_and_each_knows_all_workers() -> None:
    processes = planned(routers=2)
    assert [name for name in processes if name.startswith("router")] == ["router-0", "router-1"]
    routers = [processes[f"router-{number}"] for number in range(2)]
    assert flag(processes["gateway"], "--routers") == ",".join(router.address for router in routers)
    workers = ",".join(processes[f"worker-{number}"].address for number in range(2))
    assert [flag(router, "--workers") for router in routers] == [workers, workers]


def test_workers_are_spread_over_the_zones_in_turn() -> None:
    processes = planned(workers=3, zones=("north", "south"))
    assert [flag(processes[f"worker-{number}"], "--zone") for number in range(3)] == [
        "north",
        "south",
        "north",
    ]
    assert flag(processes["gateway"], "--zone") == "north"


def test_flags_environment_and_cores_of_a_role_and_of_one_process() -> None:
    processes = planned(
        flags={"worker": ("--log-level", "debug"), "worker-1": ("--log-level", "error")},
        env={"worker": {"A": "role", "B": "role"}, "worker-1": {"B": "own"}},
        cpus={"gateway": (0,), "worker": (1,), "worker-1": (2, 3)},
    )
    assert flag(processes["worker-0"], "--log-level") == "debug"
    assert flag(processes["worker-1"], "--log-level") == "error"
    assert processes["worker-1"].command.count("--log-level") == 1
    assert processes["worker-1"].env == {"A": "role", "B": "own"}
    assert processes["router"].env == {}
    assert [processes[name].cpus for name in ("gateway", "worker-0", "worker-1", "router")] == [
        (0,),
        (1,),
        (2, 3),
        (),
    ]


def test_a_flag_replaces_the_fleets_own_and_lists_are_not_joined() -> None:
    worker = planned(flags={"worker-1": ("--engines=sim", "--no-frames")})["worker-1"]
    assert "--engines" not in worker.command
    assert "llamacpp" not in worker.command
    assert worker.command[-2:] == ("--engines=sim", "--no-frames")
    assert flag(worker, "--zone") == "zone-b"


def test_a_catalog_and_engines_are_passed_on() -> None:
    processes = planned(catalog=Path("/my/catalog.yaml"), engines=("llamacpp", "sim"))
    assert flag(processes["model-loader"], "--catalog") == "/my/catalog.yaml"
    assert flag(processes["worker-0"], "--engines") == "llamacpp,sim"


def test_workers_get_the_engines_of_a_list_in_turn() -> None:
    processes = planned(workers=3, engines=("vllm,llamacpp", "sim"))
    hosted = [flag(processes[f"worker-{number}"], "--engines") for number in range(3)]
    assert hosted == ["vllm,sim", "llamacpp,sim", "vllm,sim"]
    fleet = FleetSpec(state_dir=Path("/state"), workers=2, engines=("vllm,llamacpp", "sim"))
    assert fleet.all_engines == {"vllm", "llamacpp", "sim"}
    assert "--catalog" not in planned()["model-loader"].command


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "workers: a fleet needs at least one, got 0"),
        ({"routers": 0}, "routers: a fleet needs at least one"),
        ({"tokenizers": -1}, "tokenizers: a fleet needs at least one"),
        ({"zones": ()}, "zones: name at least one"),
        ({"flags": {"worker-7": ("--x",)}}, "no process or role is called 'worker-7'"),
        ({"cpus": {"gatway": (0,)}}, "no process or role is called 'gatway'"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FleetSpec(state_dir=Path("/state"), **changes)
