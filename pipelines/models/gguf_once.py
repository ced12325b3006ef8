"""gguf's reader without what it and transformers do again and again, which is most of a conversion's time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np


@contextmanager
def read_once() -> Iterator[None]:
    """Within the block a GGUF file is parsed once, and the tensor names of an architecture are listed once.

    transformers parses the file for its config, its weights and its tokenizer alike, and lists the names anew for every
    module of the model. gguf cuts hundreds of thousands of fields out of a np.memmap, each at ten times the cost of one
    that is cut out of an array over the same memory.
    """
    import gguf

    class Reader(gguf.GGUFReader):  # type: ignore[misc]  # untyped
        data: Any

        def _get(self, *args: Any, **options: Any) -> Any:
            if isinstance(self.data, np.memmap):
                self.data = np.asarray(self.data)
            return super()._get(*args, **options)

    with (
        mock.patch.object(gguf, "GGUFReader", lru_cache(maxsize=1)(Reader)),
        mock.patch.object(gguf, "get_tensor_name_map", lru_cache(gguf.get_tensor_name_map)),
    ):
        yield
