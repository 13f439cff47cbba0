"""The systems as they are started for real, and what stands in for the controller."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import psutil
import pytest

from shoal.bench.processes import DiedError, Processes
from shoal.bench.relay import bodies, nginx, systems
from shoal.bench.relay.controller import Controller
from shoal.bench.relay.cores import share_out
from shoal.errors import ShoalError
from shoal.gateway.keyring import Keyring
from shoal.messages import ModelCount, RelayReport, RoutingTable, ToRelay, Usage, UsageReport, UsageStored, Waiting
from shoal.net import TcpAddress, UnixAddress

BINARY = nginx.binary()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[systems.Stage]:
    with ExitStack() as stack:
        processes = stack.enter_context(Processes(tmp_path / "logs"))
        cores = share_out(os.sched_getaffinity(0))
        made = systems.Stage(processes, stack, cores, tmp_path, tmp_path / "venvs")
        made.upstreams = systems.start_upstreams(made, cores.upstream)
        yield made


def test_our_relay_serves_every_model_with_the_key_and_reports(stage: systems.Stage) -> None:
    system = systems.SYSTEMS["aiohttp"](stage)
    systems.wait(stage, system)
    assert set(system.ports) == {bodies.ANSWERS, *bodies.STREAMS}
    assert system.pids(bodies.ANSWERS) == system.pids(bodies.LATE) != []
    assert system.controller is not None
    assert os.sched_getaffinity(system.pids(bodies.ANSWERS)[0]) == {stage.cores.proxy}


def test_one_of_several_workers_counts_in_shared_memory(stage: systems.Stage) -> None:
    system = systems.SYSTEMS["shared"](stage)
    systems.wait(stage, system)
    links = Path(f"/proc/{system.pids(bodies.ANSWERS)[0]}/fd").iterdir()
    assert any("memfd:shoal-limits" in str(link.readlink()) for link in links)


@pytest.mark.skipif(BINARY is None, reason="nginx is not installed")
def test_nginx_passes_every_model_on(stage: systems.Stage) -> None:
    system = systems.SYSTEMS["nginx"](stage)
    systems.wait(stage, system)
    assert system.ports[bodies.ANSWERS] != system.ports[bodies.SPREAD], "two upstreams, one proxy"
    assert system.ports[bodies.ANSWERS] != stage.upstreams[bodies.ANSWERS].port


@pytest.mark.parametrize("tcp", [False, True])
def test_our_relay_reaches_engines_by_their_sockets_unless_told_otherwise(stage: systems.Stage, tcp: bool) -> None:
    stage.tcp = tcp
    system = systems.SYSTEMS["native"](stage)
    systems.wait(stage, system)
    (relay,) = system.pids(bodies.ANSWERS)
    reached = {one.raddr.port for one in psutil.Process(relay).net_connections("tcp") if one.raddr}
    assert (stage.upstreams[bodies.ANSWERS].port in reached) == tcp, "as kept connections tell"


def test_without_a_proxy_there_is_no_process_to_look_at(stage: systems.Stage) -> None:
    for name in ("direct", "across"):
        system = systems.SYSTEMS[name](stage)
        systems.wait(stage, system)
        assert system.pids(bodies.ANSWERS) == []


def test_one_that_dies_is_said_with_its_log(stage: systems.Stage) -> None:
    running = stage.processes.start("sad", ["/bin/sh", "-c", "echo alas; exit 3"])
    running.process.wait()
    port = stage.port()
    with pytest.raises(DiedError, match="alas"):
        systems.wait(stage, systems.System("sad", {"m": port}, {"m": running}))
    with pytest.raises(TimeoutError, match="nobody does not serve 'm'"):
        systems.wait(stage, systems.System("nobody", {"m": port}), timeout=0.1)


def test_what_is_missing_is_said(stage: systems.Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nginx, "binary", lambda: None)
    with pytest.raises(systems.MissingError, match="apt-get install"):
        systems.SYSTEMS["nginx"](stage)
    monkeypatch.setattr(systems, "relay_kinds", lambda: ("aiohttp",))
    with pytest.raises(systems.MissingError, match="no relay 'native'"):
        systems.SYSTEMS["native"](stage)
    stage.venvs.write_text("a file where a folder has to be")
    with pytest.raises(systems.MissingError, match="cannot be installed"):
        systems.venv(stage, "litellm", "litellm")


def test_the_table_asks_for_the_key_and_counts_what_runs(stage: systems.Stage) -> None:
    table = systems.table(stage)
    assert table.keys_required
    assert stage.key not in msgspec.json.encode(table).decode()
    assert all(target.capacity == systems.CAPACITY for route in table.routes for target in route.targets)
    keyring = Keyring()
    keyring.replace(table.keys, required=table.keys_required)
    assert keyring.identify(f"Bearer {stage.key}".encode(), None, wall=0.0) == table.keys[0]
    with pytest.raises(ShoalError):
        keyring.identify(b"Bearer sk-other", None, wall=0.0)


def test_no_port_is_given_twice(stage: systems.Stage) -> None:
    ports = [stage.port() for _ in range(50)]
    assert len(set(ports)) == 50


@pytest.mark.skipif(BINARY is None, reason="nginx is not installed")
def test_nginx_takes_both_configurations_and_writes_beside_them(tmp_path: Path) -> None:
    assert BINARY is not None
    upstreams: dict[int, TcpAddress | UnixAddress] = {
        18081: TcpAddress("127.0.0.1", 18080),
        18082: UnixAddress(tmp_path / "e.sock"),
    }
    for config in (nginx.answering(tmp_path, 18080, tmp_path / "e.sock"), nginx.passing(tmp_path, upstreams)):
        path = tmp_path / "nginx.conf"
        path.write_text(config)
        checked = subprocess.run([*nginx.command(BINARY, path), "-t"], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        assert "alert" not in checked.stderr


def test_the_controller_sends_the_table_and_remembers_what_relays_carry(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    table = RoutingTable(epoch="bench", version=1)
    report = RelayReport(
        relay="r",
        epoch="bench",
        version=1,
        outstanding={"a-0": 2},
        counts=(ModelCount("a", "ok", 5), ModelCount("a", "cancelled", 2)),
        waiting=(Waiting("a", queued=3, held=1),),
    )
    used = UsageReport("r", 7, (Usage("k", "a", "2026-01-31", 1, 2, 3, 0.0),))
    with Controller(path, table) as controller, socket.socket(socket.AF_UNIX) as relay:
        with pytest.raises(LookupError):
            _ = controller.carried
        relay.connect(str(path))
        lines = relay.makefile("rb")
        decoder = msgspec.json.Decoder(ToRelay)
        assert decoder.decode(lines.readline()) == table
        for message in (report, used):  # what is answered last proves that what came before was read
            relay.sendall(msgspec.json.encode(message) + b"\n")
        assert decoder.decode(lines.readline()) == UsageStored(7)
        assert controller.carried == 6
        assert controller.ended == 7
        idle = msgspec.structs.replace(report, outstanding={}, waiting=())
        relay.sendall(msgspec.json.encode(idle) + b"\n" + msgspec.json.encode(used) + b"\n")
        lines.readline()
        assert controller.carried == 0
        relay.sendall(b"nonsense\n")
        assert lines.readline() == b"", "a relay that says nonsense is not listened to"
