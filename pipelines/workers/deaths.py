"""What is said of a cell whose process was killed, or that did not get its memory."""

from __future__ import annotations

from pipelines.choices import estimate
from pipelines.records.cells import Cell, Result
from pipelines.records.numbers import GIB

AGAIN = "it is not tried again unless retry=true"


def killed(cell: Cell, *, for_memory: bool, how: str = "its process was killed") -> Result:
    """The result of a cell whose process is gone: oom where the kernel took it for memory, else failed."""
    if for_memory:
        return Result(cell.id, "oom", error=f"out of host memory: the kernel killed this cell's process; {fits(cell)}")
    return Result(cell.id, "failed", error=f"killed: {how}, and nobody says for memory; {AGAIN}")


def fits(cell: Cell) -> str:
    """What a cell of this length is expected to take, and the largest length that has room; for the end of an error."""
    need, room = expected(cell), estimate.capacity(cell.device)
    if need is None or room is None:
        return "give a smaller length, or more memory"
    where = "on the smallest GPU" if cell.device == "cuda" else "here"
    return (
        f"length={cell.length} is expected to take {need / GIB:.1f} GiB, and of the {room / GIB:.1f} GiB {where} "
        f"the largest length that fits is about {estimate.fitting(cell) or 0}"
    )


def expected(cell: Cell) -> float | None:
    """Bytes that a cell takes at its worst moment; None where its model does not tell."""
    return estimate.need(cell.model, cell.length, cell.dtype, cell.device)
