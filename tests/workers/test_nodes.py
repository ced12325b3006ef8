"""A cluster of several nodes: here, all of them on this machine.

Minutes on a busy machine: pytest -m sweep tests/workers/test_nodes.py
"""

from __future__ import annotations

import pytest
from launches import Launch, until
from nodes import TOKEN, Nodes

pytestmark = [pytest.mark.sweep, pytest.mark.timeout(1800)]

RAY = {"device": "cpu", "count": 2}

WHERE = """
def where(cells):  # goes to the workers by value: they have none of the tests
    import os, time, pipelines
    from pathlib import Path
    from pipelines.records.cells import Result
    for cell in cells:
        Path({folder!r}, f"began-{{cell.length}}-{{os.getpid()}}").write_text(pipelines.__file__)
        while not Path({folder!r}, "gate").exists():
            time.sleep(0.05)
        yield Result(cell.id, "ok")
"""


@pytest.fixture(scope="module")
def nodes():
    nodes = Nodes()
    yield nodes
    nodes.close()


def launched(folder, nodes, cells, **variables):
    before = WHERE.format(folder=str(folder))
    environment = {**TOKEN, "RAY_ADDRESS": nodes.address, **variables}
    return Launch(folder, [(n, {}) for n in cells], RAY, before=before, evaluator="where", **environment)


def test_a_node_is_lost_and_another_joins_and_workers_run_the_code_they_were_sent(nodes, tmp_path):
    while nodes.added < 2:
        nodes.add()
    launch = launched(tmp_path, nodes, range(10, 16))
    until(lambda: launch.began == 2)
    nodes.lose()
    until(lambda: "the worker died on" in launch.errors)
    nodes.add()
    until(lambda: launch.began == 3)
    (tmp_path / "gate").touch()
    lines, _ = launch.end(400)
    assert sorted(lines) == [*(f"ok {n}" for n in range(10, 16)), "start"], launch.errors
    assert launch.process.returncode == 0 and not launch.noted and launch.began == 7
    assert all("/working_dir_files/" in path.read_text() for path in tmp_path.glob("began-*"))


OTHER = """
import importlib.metadata
real = importlib.metadata.version
importlib.metadata.version = lambda name: "1.0" if name == "torch" else real(name)
"""


def test_a_node_with_other_packages_is_refused_with_both_versions(nodes, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(OTHER)
    while nodes.added:
        nodes.lose()
    nodes.add(PYTHONPATH=str(tmp_path))
    try:
        lines, _ = launched(tmp_path, nodes, [10]).end(400)
        assert lines[-1].startswith("Refusal ") and "torch 1.0 there and" in lines[-1], lines
    finally:
        nodes.lose()


@pytest.mark.parametrize("token", ["", "f" * 64], ids=["none", "another"])
def test_a_driver_without_the_clusters_token_is_refused_with_what_to_give(nodes, tmp_path, token):
    variables = {"RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}
    lines, _ = launched(tmp_path, nodes, [10], HOME=str(tmp_path), **variables).end(400)
    assert "does not take this driver" in lines[-1] and "RAY_AUTH_MODE=token" in lines[-1], lines
    assert lines[-1].startswith("Refusal ")


def test_a_launch_of_its_own_joins_no_cluster_that_runs_on_the_machine(nodes, tmp_path):
    lines, _ = Launch(tmp_path, [(10, {}), (11, {})], RAY).end(400)
    assert sorted(lines) == ["ok 10", "ok 11", "start"]
