"""Functions that torch compiles where it can, which fuses what is bound by memory; as they are where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Compiled:
    """A function and its compiled form, which is made at its first call.

    Attributes:
        failure: why there is no compiled form, such as for want of a C compiler; "" as long as there is one. Then and
            from then on the function itself is called.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.failure = function, ""
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.failure:
            return self.function(*args, **kwargs)
        import torch  # here, as it loads the compiler

        if self._compiled is None:
            self._compiled = torch.compile(self.function)
        try:
            return self._compiled(*args, **kwargs)
        except Exception as failure:
            if not _of_the_compiler(failure):
                raise
            self.failure = " ".join(str(failure).split())[:200] or type(failure).__name__
        return self.function(*args, **kwargs)


def _of_the_compiler(failure: Exception) -> bool:
    import torch._dynamo.exc
    import torch._inductor.exc

    return isinstance(failure, (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError))
