"""Samples of a busy machine."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from support import CELL

from pipelines.records.cells import Result
from pipelines.track.cell_runs import cell_run
from pipelines.workers import usage


def test_a_long_cell_has_samples_of_its_whole_time_and_not_too_many(monkeypatch):
    monkeypatch.setattr(usage, "MOST", 8)
    monkeypatch.setattr(usage, "sample", lambda device: {"system/x": 1.0})
    with usage.sampled("cpu", interval=0.005) as samples:
        time.sleep(0.5)
    times = [at for at, _ in samples["system/x"]]
    assert 4 <= len(times) <= 8 and times == sorted(times)
    assert times[-1] > 0.2 and times[0] < times[-1] / 2


def test_what_cannot_be_sampled_leaves_the_cell_alone(monkeypatch):
    def broken(device):
        raise RuntimeError("no driver")

    monkeypatch.setattr(usage, "sample", broken)
    with usage.sampled("cuda", interval=0.001) as samples:
        time.sleep(0.02)
    assert samples == {}


def test_a_short_cell_waits_for_no_sample():
    start = time.monotonic()
    with usage.sampled("cpu", interval=60) as samples:
        pass
    assert samples == {} and time.monotonic() - start < 5


def test_every_gpu_is_sampled_under_the_names_of_mlflows_own_monitor(monkeypatch):
    monkeypatch.setattr(usage.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(usage.torch.cuda, "mem_get_info", lambda gpu: (3 << 30, (4 << 30)))
    monkeypatch.setattr(usage.torch.cuda, "utilization", lambda gpu: 90 + gpu)
    found = usage.sample("cuda")
    assert found["system/gpu_1_utilization_percentage"] == 91
    assert found["system/gpu_0_memory_usage_megabytes"] == 1024
    assert found["system/gpu_0_memory_usage_percentage"] == 25
    monitor = pytest.importorskip("mlflow.system_metrics.metrics.gpu_monitor")
    with open(monitor.__file__) as file:
        theirs = file.read()
    for name in ("utilization_percentage", "memory_usage_megabytes", "memory_usage_percentage"):
        assert f"gpu_{{i}}_{name}" in theirs


def test_mlflow_gets_samples_by_the_second():
    result = Result(CELL.id, "ok", {"ppl": 2.0}, {"system/cpu_utilization_percentage": [(1.02, 50.0), (2.04, 60.0)]})
    rows = [row for row in cell_run(replace(CELL), result).metrics if row[0].startswith("system/")]
    assert rows == [("system/cpu_utilization_percentage", 50.0, 1), ("system/cpu_utilization_percentage", 60.0, 2)]
