"""torch and transformers imported without what nothing here uses of them, which takes as long again as the rest.

Only in processes of ropewalk's own (`own`): in a notebook others may want what is left out here.
"""

from __future__ import annotations

import gc
import importlib
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

COMPILER = "torch._dynamo"
FRAMES = "torch._dynamo.eval_frame"
INDEXING = "torch._dynamo._trace_wrapped_higher_order_op"

_own = False
_loading, _counting = threading.Lock(), threading.Lock()
_importing, _collected = 0, True


def own() -> None:
    """Say that this process is ropewalk's own, a command or a worker."""
    global _own
    _own = True


@contextmanager
def uncollected() -> Iterator[None]:
    """Imports, in any thread of a process of our own: what they make stays, and the garbage collector would look at
    all of it again and again, for a fifth of their time. After the last such block it is as it was before the first."""
    global _importing, _collected
    if not _own:
        yield
        return
    with _counting:
        if not _importing:
            _collected = gc.isenabled()
            gc.disable()
        _importing += 1
    try:
        yield
    finally:
        with _counting:
            _importing -= 1
            if not _importing and _collected:
                gc.enable()


def load() -> None:
    """Import what transformers' models are made of; in a process of our own without

    - torch._dynamo, which it imports to mark functions for torch.compile: of its server, of FP8 kernels, losses;
    - torchvision (which is not there for transformers from then on), scipy.optimize and sklearn, as where they are not
      installed: for the losses of models that detect objects, and for guessed tokens.

    Whatever goes wrong with that, as in a version of transformers that nobody here has seen: it is imported as it is.
    Nothing is left out where transformers is loaded already.
    """
    with _loading, uncollected():
        if not _own or "transformers.modeling_utils" in sys.modules:
            return
        before = set(sys.modules)
        try:
            _load()
        except Exception:
            log.debug("transformers is imported whole", exc_info=True)
            for name in [name for name in sys.modules if name.startswith("transformers.") and name not in before]:
                del sys.modules[name]
            _import_all()


PARTS = (
    "modeling_utils",
    "masking_utils",
    "modeling_gguf_pytorch_utils",
    "models.auto.modeling_auto",
    "models.auto.tokenization_auto",
    "models.llama.configuration_llama",
    "models.llama.modeling_llama",
    "generation.utils",
)
"""Of transformers, so that what does not import without the rest shows at once."""


def _import_all() -> None:
    for name in PARTS:
        importlib.import_module(f"transformers.{name}")


def _load() -> None:
    requests()
    from unittest import mock

    import transformers.utils as utils
    from transformers.utils import import_utils

    with ExitStack() as stack:
        kept = ExitStack()  # for good, if all goes well: what was not imported must not be asked for later either
        for module in (utils, import_utils):
            kept.enter_context(mock.patch.object(module, "is_torchvision_available", lambda: False))
            for library in ("scipy", "sklearn"):
                stack.enter_context(mock.patch.object(module, f"is_{library}_available", lambda: False))
        stack.enter_context(without_compiler())
        try:
            _import_all()
        except BaseException:
            kept.close()
            raise


def wake() -> None:
    """Have CUDA load itself and what multiplies and attends, which takes seconds, where this process may use a GPU."""
    import torch

    if torch.cuda.is_available():
        from rope import chunks

        states = torch.zeros(1, 2, 256, 64, device="cuda", dtype=torch.bfloat16)
        chunks.attend(states @ states.mT @ states, states, states, True, 1.0)
        torch.cuda.synchronize()


def requests() -> None:
    """Import requests with charset_normalizer, which it needs anyway, and not with chardet, which takes a second."""
    if not _own or "requests" in sys.modules or "chardet" in sys.modules:
        return
    sys.modules["chardet"] = None  # type: ignore[assignment]  # so importing it fails, as where it is not installed
    try:
        importlib.import_module("requests")
    finally:
        del sys.modules["chardet"]


@contextmanager
def without_compiler() -> Iterator[None]:
    """In a process of our own: within the block nothing loads torch._dynamo to be told that it does not matter.

    Marks on functions for torch.compile have no effect then; those that torch itself puts when it computes without
    data, as a model is built, are put again where they are needed. Whoever asks for anything else gets the module.
    """
    if not _own or COMPILER in sys.modules:
        yield
        return
    import torch

    marked = list[Any]()

    def mark(function: Any = None, *_: Any, **__: Any) -> Any:
        if function is not None:
            marked.append(function)
        return mark if function is None else function

    def indexing() -> Any:  # what masks are made under where they are made by vmap
        return importlib.import_module(INDEXING).TransformGetItemToIndex()

    marks: dict[str, Any] = dict.fromkeys(("allow_in_graph", "assume_constant_result", "disable"), mark)
    # whoever saves a model asks whether it is a compiled one
    marks["eval_frame"] = _StandIn(FRAMES, {}, {"OptimizedModule": type("OptimizedModule", (), {})})
    with (
        _StandIn(INDEXING, {}, {"TransformGetItemToIndex": indexing, "__path__": []}),
        _StandIn(COMPILER, torch.__dict__, marks),
    ):
        yield
    for function in marked:
        with suppress(AttributeError):
            del function.__dynamo_disable


class _StandIn(ModuleType):
    """In the place of a module: has a few of its names, and makes room for it where any other is asked for.

    Whoever has kept it gets all names from the module itself, once the block is left.
    package: the names of the module that holds it.
    """

    def __init__(self, name: str, package: dict[str, Any], given: dict[str, Any]) -> None:
        super().__init__(name)
        self.__dict__.update(given, _package=package, _given=tuple(given))

    def __enter__(self) -> None:
        sys.modules[self.__name__] = self
        if self._package:
            self._package[self.__name__.rpartition(".")[2]] = self

    def __exit__(self, *_: object) -> None:
        for name in self._given:
            self.__dict__.pop(name, None)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
            self._package.pop(self.__name__.rpartition(".")[2], None)

    def __getattr__(self, name: str) -> Any:
        if name == "__file__" and sys.modules.get(self.__name__) is self:  # as inspect looks through all modules
            raise AttributeError(name)
        self.__exit__()
        return getattr(importlib.import_module(self.__name__), name)
