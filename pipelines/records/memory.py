"""What memory this process may use, and whether the kernel killed for the lack of it.

Control groups of both versions count, as in containers and under schedulers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")

UNLIMITED = 2**60
"""Bytes: version 1 writes a number near 2^63 where there is no limit."""


def limit(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Bytes: the machine's memory, or the lowest limit of the control groups around this process."""
    limits = [entry for folder in _folders(proc, groups) if (entry := _limit(folder)) is not None]
    return min([int(psutil.virtual_memory().total), *limits])


def available(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Bytes that can still be taken: of the machine, and below the limit of every control group around this process."""
    free = [int(psutil.virtual_memory().available)]
    for folder in _folders(proc, groups):
        if (allowed := _limit(folder)) is not None:
            used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
            # Files that were read and can be dropped count as used there, and are not.
            dropped = _entries(folder / "memory.stat")
            free.append(allowed - used + dropped.get("total_inactive_file", dropped.get("inactive_file", 0)))
    return max(0, min(free))


def reachable() -> int:
    """Bytes that this process can come to hold: what it holds, and what is available."""
    return available() + held()


def held() -> int:
    """Bytes of memory that this process holds."""
    return int(psutil.Process().memory_info().rss)


def kills(proc: Path = PROC, groups: Path = GROUPS) -> dict[str, int]:
    """How many processes the kernel has killed for memory, by the file that counts them: of this process's control
    group where it counts, and of the machine. A counter that is not there is absent."""
    own = next(_folders(proc, groups), None)
    files = [] if own is None else [own / "memory.events", own / "memory.oom_control"]
    counted = {str(file): _entries(file).get("oom_kill") for file in [*files, proc / "vmstat"]}
    return {name: count for name, count in counted.items() if count is not None}


def killed_since(before: Mapping[str, int]) -> bool:
    """Whether the kernel has killed for memory since `kills()` said this; by the control group where it counts."""
    for name, count in before.items():
        now = _entries(Path(name)).get("oom_kill")
        if now is not None:
            return now > count
    return False


def _folders(proc: Path, groups: Path) -> Iterator[Path]:
    """The folders of the control groups that hold this process's memory, the innermost first."""
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            root = groups / "memory" if "memory" in controllers.split(",") else groups
            if (controllers and root == groups) or not (controllers or (groups / "cgroup.controllers").is_file()):
                continue
            own = root / path.lstrip("/")
            # In a container the path may be the host's, and what is mounted is the container's own group.
            own = own if own.is_dir() else root
            yield from (folder for folder in [own, *own.parents] if folder == root or root in folder.parents)


def _limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        value = _number(folder / name)
        if value is not None and value < UNLIMITED:
            return value
    return None


def _number(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def _entries(file: Path) -> dict[str, int]:
    """The lines `NAME NUMBER` of a file; none where it cannot be read."""
    with suppress(OSError):
        rows = [line.split() for line in file.read_text().splitlines()]
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}
    return {}
