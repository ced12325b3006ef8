"""Numbers for people to read."""

from __future__ import annotations

GIB = 2**30


def number(value: float) -> str:
    """Four significant digits: 0.125, 10.27, 1969."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """3.2 s, 4 min 10 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(count: float) -> str:
    """120 bytes, 3.4 KiB, 12 MiB, 1.5 GiB.

    >>> memory(120), memory(3500), memory(12 * 2**20), memory(1.5 * GIB)
    ('120 bytes', '3.4 KiB', '12 MiB', '1.5 GiB')
    """
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count >= 10 * size else f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"
