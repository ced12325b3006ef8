"""Figures drawn by other processes are those that this one would draw, whatever becomes of the processes."""

from __future__ import annotations

import os
from functools import partial

import pytest

from pipelines.report.painters import Painters

WHO = partial(eval, "[__import__('os').getpid()]")  # in place of figures: who was asked


@pytest.mark.slow
def test_jobs_are_done_by_whoever_has_time_in_their_order_and_here_where_a_process_died():
    painters = Painters(2)
    assert painters.draw([WHO]) == [[os.getpid()]]  # none has begun
    painters.begin()
    try:
        numbered = painters.draw([partial(eval, f"[{number}]") for number in range(5)])
        assert numbered == [[0], [1], [2], [3], [4]]
        assert os.getpid() not in [who for [who] in painters.draw([WHO, WHO, WHO])]
        for process in painters._processes:
            process.kill()
            process.wait()
        assert painters.draw([WHO, WHO]) == [[os.getpid()]] * 2
        with pytest.raises(ZeroDivisionError):
            painters.draw([partial(eval, "1 / 0")])
    finally:
        painters.close()
    painters.begin()
    assert painters.draw([WHO]) == [[os.getpid()]]
