"""Imports an engine's own source files on a CPU, with stand-ins for all that does not compute rotations.

A stand-in takes any arguments, has any attribute, and is empty, zero and false. `OURS` names those with a meaning.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

MADE: list[StandIn] = []
"""Every stand-in for a layer, as it is made: attention's holds the scale of its softmax."""

OURS: dict[str, Any] = {}
"""What a name stands for, in whatever module it is looked for."""


class _Kind(type(nn.Module)):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return stand_in(name)

    def __getitem__(cls, item: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__

    def __iter__(cls) -> Any:
        return iter(())


class StandIn(nn.Module, metaclass=_Kind):
    """Any class, function or object of an engine."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__()
        object.__setattr__(self, "given", (given, named))
        MADE.append(self)

    def __init_subclass__(cls, **_: Any) -> None:
        super().__init_subclass__()

    def __getattr__(self, name: str) -> Any:
        if name == "__name__":
            return type(self).__name__
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return stand_in(name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        decorated = len(given) == 1 and not named and isinstance(given[0], (type, types.FunctionType))
        return given[0] if decorated else self

    def register_buffer(self, name: str, tensor: Any, persistent: bool = True) -> None:
        self._buffers[name] = tensor  # nn.Module asks hasattr first, and here everything is there

    def register_parameter(self, name: str, param: Any) -> None:
        self._parameters[name] = param

    def __iter__(self) -> Any:
        return iter(())

    def __getitem__(self, item: Any) -> Any:
        return self

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        return None

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def __int__(self) -> int:
        return 0

    __index__ = __int__

    def __float__(self) -> float:
        return 0.0

    def __add__(self, other: Any) -> Any:
        return other

    __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __floordiv__ = __mod__ = __add__
    __rfloordiv__ = __rmod__ = __pow__ = __rpow__ = __and__ = __rand__ = __add__

    def __lt__(self, other: Any) -> bool:
        return False

    __le__ = __gt__ = __ge__ = __lt__


class Namespace(types.SimpleNamespace):
    """An object with the given attributes, and a stand-in for each other: 1 for a size, 0 for a rank."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.endswith(("_size", "_rank")):
            return int(name.endswith("_size"))
        return stand_in(name)


def stand_in(name: str) -> Any:
    """What stands for a name: one process on one device, without any optional feature."""
    if name in OURS:
        return OURS[name]
    lower = name.lower()
    if lower.endswith(("world_size", "_size")) and not lower.startswith("set"):
        return lambda *_, **__: 1
    if lower.endswith(("rank", "rank_in_group")):
        return lambda *_, **__: 0
    if lower.startswith(("is_", "_is_", "has_", "use_", "should_", "enable", "get_bool")) or lower.endswith("_enabled"):
        return lambda *_, **__: False
    if name[:1].isupper() and not name.isupper():
        return _Kind(name, (StandIn,), {})
    made = StandIn.__new__(StandIn)
    nn.Module.__init__(made)
    object.__setattr__(made, "given", ((name,), {}))
    return made


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = stand_in(name)
        setattr(self, name, value)
        return value


class Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of one engine: those in `real` in its source folder, all others as stand-ins.

    real: full names; `package.*` for a package with all that it holds. others: top-level packages that it needs and
    that are not installed.
    """

    def __init__(self, source: Path, package: str, real: Sequence[str], others: Sequence[str]) -> None:
        self.source, self.package, self.real, self.others = source, package, real, frozenset(others)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        head = name.partition(".")[0]
        if head != self.package and head not in self.others:
            return None
        file = self.source.joinpath(*name.split("."))
        if any(name == own or (own.endswith(".*") and f"{name}.".startswith(own[:-1])) for own in self.real):
            if (file / "__init__.py").is_file():
                return importlib.util.spec_from_file_location(
                    name, file / "__init__.py", submodule_search_locations=[str(file)]
                )
            if file.with_suffix(".py").is_file():
                return importlib.util.spec_from_file_location(name, file.with_suffix(".py"))
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = _Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        return None


def define(names: Mapping[str, Any] | None = None, **more: Callable[..., Any] | Any) -> None:
    """Give names a meaning, wherever an engine looks for them."""
    OURS.update({**(names or {}), **more})
