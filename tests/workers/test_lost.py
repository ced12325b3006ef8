"""Ray, or a part of it, killed while cells run."""

from __future__ import annotations

import re
import socket
import time

import pytest
from launches import Launch, until
from support import stub_cell

from pipelines.records import provenance
from pipelines.records.refusal import LaunchEnded, Refusal
from pipelines.workers import actors, pool

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
        before = "from pipelines.workers import cluster; cluster.JOIN = 2.0"
        lines, _ = Launch(tmp_path, [(10, {})], RAY, before=before, RAY_ADDRESS=address).end(60)
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


SLOW = """
import sys, time
if any(word.endswith(("dashboard/agent.py", "runtime_env/agent/main.py")) for word in sys.orig_argv):
    time.sleep(17)
"""


@pytest.mark.slow
def test_ray_starts_where_its_agents_are_slower_than_it_allows_them(tmp_path):
    """As on a busy machine: its raylet waits 15 s for them."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    lines, seconds = Launch(tmp_path, [(10, {}), (11, {})], RAY, paths=[str(tmp_path)]).end(120)
    assert sorted(lines) == ["ok 10", "ok 11", "start"] and seconds > 17


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("raylet", marks=pytest.mark.slow),
        *(pytest.param(part, marks=pytest.mark.sweep) for part in ("gcs_server", "DashboardAgent")),
    ],
)
def test_a_lost_part_is_seen_within_half_a_minute_and_ray_is_started_once_more(tmp_path, part):
    launch = Launch(tmp_path, [(n, {"seconds": 4.0}) for n in range(10, 16)], RAY)
    until(lambda: launch.began >= 2 and launch.left(part))
    [victim] = launch.left(part)
    victim.kill()
    start = time.monotonic()
    until(lambda: "starting it again" in launch.errors)
    print(f"{part}: seen after {time.monotonic() - start:.1f} s")
    assert time.monotonic() - start < 30
    lines, _ = launch.end(180)
    assert sorted(lines[1:]) == [f"ok {n}" for n in range(10, 16)], (lines, launch.errors)
    assert launch.process.returncode == 0 and not launch.gone()


@pytest.mark.sweep
def test_lost_again_the_rest_is_left_for_the_next_launch_with_a_sentence(tmp_path):
    launch = Launch(tmp_path, [(n, {"seconds": 4.0}) for n in range(10, 16)], RAY)
    for began in (2, 4):
        until(lambda began=began: launch.began >= began)
        [victim] = launch.left("raylet")
        victim.kill()
    lines, seconds = launch.end(60)
    assert re.match("LaunchEnded Ray's raylet is gone again; [4-6] cells left for the next launch", lines[-1]), lines
    assert launch.process.returncode == 1 and seconds < 30
    assert not launch.gone() and not launch.noted
