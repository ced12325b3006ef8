"""gguf's reader without what it and transformers do again and again, which is most of a conversion's time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np


@contextmanager
def read_once(loader: ModuleType, reader: ModuleType | None) -> Iterator[None]:
    """Within the block a GGUF file is parsed once, and the tensor names of an architecture are listed once.

    loader, reader: transformers' modeling_gguf_pytorch_utils and, where its version has one, integrations.gguf.reader.

    transformers parses the file for its config, its weights and its tokenizer alike, and lists the names anew for every
    module of the model. gguf cuts hundreds of thousands of fields out of a np.memmap, each at ten times the cost of one
    that is cut out of an array over the same memory.
    """
    from unittest import mock

    import gguf

    class Reader(gguf.GGUFReader):  # type: ignore[misc]  # untyped
        data: Any

        def _get(self, *args: Any, **options: Any) -> Any:
            if isinstance(self.data, np.memmap):
                self.data = np.asarray(self.data)
            return super()._get(*args, **options)

    parse, values = loader._gguf_parse_value, dict[tuple[int, int], tuple[Any, Any, Any]]()

    def parsed(part: Any, types: Any) -> Any:
        key = id(part), id(types)
        if key not in values:
            values[key] = part, types, parse(part, types)  # with both, so that their ids stay their own
        return values[key][2]

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(gguf, "GGUFReader", lru_cache(maxsize=1)(Reader)))
        stack.enter_context(mock.patch.object(gguf, "get_tensor_name_map", lru_cache(gguf.get_tensor_name_map)))
        stack.enter_context(mock.patch.object(loader, "_gguf_parse_value", parsed))
        if reader is not None and hasattr(reader, "_read_metadata"):
            stack.enter_context(mock.patch.object(reader, "_read_metadata", _once(reader._read_metadata)))
        yield


def _once(read: Callable[..., Any]) -> Callable[..., Any]:
    """A file's keys, read once: (contents, path, names of arrays that are wanted) -> (keys by name, ...)."""
    known = dict[tuple[str, tuple[str, ...]], Any]()

    def once(blob: Any, path: str, arrays: Any = ()) -> Any:
        key = (path, tuple(arrays))
        if key not in known:
            known[key] = read(blob, path, arrays)
        metadata, *rest = known[key]
        return dict(metadata), *rest

    return once
