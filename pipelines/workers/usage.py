"""How busy the machine is while a cell is computed: samples that MLflow's page shows as system metrics of its run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import torch

Samples = dict[str, list[tuple[float, float]]]
"""Name as MLflow's own monitor has it -> (seconds since the start, value)."""

INTERVAL = 1.0
"""Seconds between two samples at first."""

MOST = 240
"""Samples that are kept of one cell: when there are more, every second one is dropped and half as many are taken."""


def sample(device: str) -> dict[str, float]:
    """One look at the machine: its processors, its memory, and with a CUDA device every GPU."""
    mib = 1 << 20
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": psutil.virtual_memory().used / mib,
    }
    for gpu in range(torch.cuda.device_count()) if device == "cuda" else ():
        free, total = torch.cuda.mem_get_info(gpu)
        values[f"system/gpu_{gpu}_memory_usage_megabytes"] = (total - free) / mib
        values[f"system/gpu_{gpu}_memory_usage_percentage"] = 100 * (total - free) / total
        values[f"system/gpu_{gpu}_utilization_percentage"] = float(torch.cuda.utilization(gpu))
    return values


@contextmanager
def sampled(device: str, interval: float = INTERVAL) -> Iterator[Samples]:
    """Sample in a thread until the block ends; a cell shorter than the interval has none.

    What goes wrong in looking is no fault of the cell: sampling ends then.
    """
    samples: Samples = {}
    over = threading.Event()
    start = time.monotonic()
    psutil.cpu_percent()  # the first value is since the last call

    def watch() -> None:
        wait = interval
        with suppress(Exception):
            while not over.wait(wait):
                at = time.monotonic() - start
                for name, value in sample(device).items():
                    samples.setdefault(name, []).append((at, value))
                if max(map(len, samples.values())) > MOST:
                    wait *= 2
                    for points in samples.values():
                        del points[::2]

    thread = threading.Thread(target=watch, name="usage", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join(timeout=interval)
