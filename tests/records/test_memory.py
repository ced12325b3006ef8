"""Limits and kills by control groups of both versions, planted in a folder."""

from __future__ import annotations

import psutil
import pytest

from pipelines.records import memory

LINES = {1: "9:name=systemd:/\n4:memory:/jobs/7\n0::/\n", 2: "0::/jobs/7\n"}


@pytest.fixture(params=[1, 2])
def machine(request, tmp_path):
    """(proc, groups, a function that writes a group's limit, use, droppable files and kills)."""
    version, proc, groups = request.param, tmp_path / "proc", tmp_path / "cgroup"
    root = groups / "memory" if version == 1 else groups
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(LINES[version])
    (proc / "vmstat").write_text("nr_free_pages 5\noom_kill 3\n")
    (root / "jobs" / "7").mkdir(parents=True)
    if version == 2:
        (groups / "cgroup.controllers").write_text("cpu memory\n")

    def write(group, limit=None, used=0, files=0, kills=0):
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "memory.oom_control")
        if version == 2:
            names = ("memory.max", "memory.current", "inactive_file", "memory.events")
        folder = root / group
        (folder / names[0]).write_text(str(limit or {1: 2**63 - 4096, 2: "max"}[version]))
        (folder / names[1]).write_text(str(used))
        (folder / "memory.stat").write_text(f"cache 1\n{names[2]} {files}\n")
        (folder / names[3]).write_text(f"under_oom 0\noom_kill {kills}\n")

    write("jobs/7")
    return proc, groups, write


def test_the_lowest_limit_around_a_process_counts(machine):
    proc, groups, write = machine
    assert memory.limit(proc, groups) == psutil.virtual_memory().total
    write("jobs", limit=2**21)
    assert memory.limit(proc, groups) == 2**21
    write("jobs/7", limit=2**20)
    assert memory.limit(proc, groups) == 2**20


def test_what_is_available_leaves_out_what_is_used_but_for_files_that_can_be_dropped(machine):
    proc, groups, write = machine
    write("jobs/7", limit=1000, used=900, files=300)
    assert memory.available(proc, groups) == 400
    write("jobs/7", limit=1000, used=2000)
    assert memory.available(proc, groups) == 0


def test_kills_are_told_by_the_group_where_it_counts_else_by_the_machine(machine):
    proc, groups, write = machine
    write("jobs/7", kills=1)
    before = memory.kills(proc, groups)
    assert sorted(before.values()) == [1, 3]
    (proc / "vmstat").write_text("oom_kill 9\n")  # elsewhere on the machine
    assert not memory.killed_since(before)
    write("jobs/7", kills=2)
    assert memory.killed_since(before)
    only_machine = {name: count for name, count in before.items() if name.endswith("vmstat")}
    assert memory.killed_since(only_machine)


def test_a_container_whose_path_is_the_hosts_is_read_at_its_root(machine):
    proc, groups, _ = machine
    (proc / "self" / "cgroup").write_text((proc / "self" / "cgroup").read_text().replace("/jobs/7", "/docker/abc"))
    root = groups / "memory" if (groups / "memory").exists() else groups
    (root / "memory.max").write_text("4096")
    assert memory.limit(proc, groups) == 4096


def test_without_control_groups_the_machine_is_the_limit(tmp_path):
    assert memory.limit(tmp_path, tmp_path) == psutil.virtual_memory().total
    assert 0 < memory.available(tmp_path, tmp_path) <= psutil.virtual_memory().total
    assert memory.kills(tmp_path, tmp_path) == {}
