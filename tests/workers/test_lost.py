"""Ray, or a part of it, killed while cells run."""

from __future__ import annotations

import re
import socket
import time
from types import SimpleNamespace

import pytest
from launches import Launch, soon, until
from support import stub_cell

from pipelines.records import provenance
from pipelines.records.refusal import LaunchEnded, Refusal
from pipelines.workers import actors, agents, cluster, pool

RAY = {"device": "cpu", "count": 2}


def test_a_dead_address_is_refused_with_a_sentence_in_no_time(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(Refusal, match=r"RAY_ADDRESS=127\.0\.0\.1:1: nobody answers there"):
        next(pool.run([stub_cell()], pool.Workers(**RAY)))


def test_an_address_that_takes_connections_and_says_nothing_is_given_up(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        before = "cluster.JOIN = 2.0"
        lines, _ = Launch(tmp_path, [(10, {})], RAY, before=before, RAY_ADDRESS=address).end(soon(60))
    assert lines[-1] == f"LaunchEnded Ray was not there after 2 s at RAY_ADDRESS={address}"


@pytest.mark.parametrize(
    ("said", "kind"), [("Version mismatch: The cluster was started with: Ray: 1", Refusal), ("no", LaunchEnded)]
)
def test_a_start_that_fails_is_told_in_a_sentence(monkeypatch, said, kind):
    import ray

    def init(*address, **options):
        raise RuntimeError(said)

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(
        kind, match="is of another version" if kind is Refusal else "Ray did not start: no; see its logs"
    ):
        next(pool.run([stub_cell()], pool.Workers(**RAY)))


def test_a_worker_with_other_versions_is_refused_with_both():
    same = {**provenance.environment(), "machine": "another", "driver": "1"}
    actors.compare(same)
    with pytest.raises(Refusal, match=f"torch 1.0 there and {re.escape(same['torch'])} here; install the same"):
        actors.compare({**same, "torch": "1.0"})
    with pytest.raises(Refusal, match=r"changed since this launch began: torch 1\.0 there"):
        actors.compare({**provenance.environment(), "torch": "1.0"})


def test_a_raylet_is_looked_at_again_until_it_has_its_command_line(monkeypatch):
    lines, said = iter([[], ["raylet", "--node_id=7"]]), []
    part = SimpleNamespace(name=lambda: "raylet", status=lambda: "running", cmdline=lambda: next(lines))
    monkeypatch.setattr(cluster.psutil, "Process", lambda: SimpleNamespace(children=lambda: [part]))
    monkeypatch.setattr(agents, "excuse", lambda ray, line: said.append(line))
    head = cluster.Cluster.__new__(cluster.Cluster)
    head.ray, head.address, head._needed = None, None, {}
    for _ in range(3):
        head._look()
    assert said == [["raylet", "--node_id=7"]]


SLOW = """
import sys, time
if any(word.endswith(("dashboard/agent.py", "runtime_env/agent/main.py")) for word in sys.orig_argv):
    time.sleep(17)
"""


@pytest.mark.slow
def test_ray_starts_where_its_agents_are_slower_than_it_allows_them(tmp_path):
    """As on a busy machine: its raylet waits 15 s for them."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    lines, seconds = Launch(tmp_path, [(10, {}), (11, {})], RAY, paths=[str(tmp_path)]).end(soon(120))
    assert sorted(lines) == ["ok 10", "ok 11", "start"] and seconds > 17


def gated(folder):
    """A launch on Ray of four cells that wait for a file."""
    return Launch(folder, [(n, {"gate": str(folder / "gate")}) for n in range(10, 14)], RAY)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("raylet", marks=pytest.mark.slow),
        *(pytest.param(part, marks=pytest.mark.sweep) for part in ("gcs_server", "DashboardAgent")),
    ],
)
def test_a_lost_part_is_seen_within_half_a_minute_and_ray_is_started_once_more(tmp_path, part):
    launch = gated(tmp_path)
    until(lambda: launch.began >= 2)
    launch.eldest(part).kill()
    start = time.monotonic()
    until(lambda: "starting it again" in launch.errors)
    print(f"{part}: seen after {time.monotonic() - start:.1f} s")
    assert time.monotonic() - start < soon(30)
    (tmp_path / "gate").touch()
    lines, _ = launch.end(400)
    assert sorted(lines[1:]) == [f"ok {n}" for n in range(10, 14)], (lines, launch.errors)
    assert launch.process.returncode == 0 and not launch.gone()


@pytest.mark.sweep
@pytest.mark.timeout(1800)  # two starts of Ray, each of which takes minutes on a busy machine
def test_lost_again_the_rest_is_left_for_the_next_launch_with_a_sentence(tmp_path):
    launch = gated(tmp_path)
    for began in (2, 4):
        until(lambda began=began: launch.began >= began)
        launch.eldest("raylet").kill()
    lines, seconds = launch.end(soon(60))
    assert lines[-1].startswith("LaunchEnded Ray's raylet is gone again; 4 cells left for the next launch"), lines
    assert launch.process.returncode == 1 and seconds < soon(30)
    assert not launch.gone() and not launch.noted
