# SPDX-License-Identifier: GPL-2.0-only
"""A library that is loaded when it is first used, so that what does not need it runs where it is not installed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any


class Later(ModuleType):
    """Stands for the library of this name, and loads it for the first of its names that is asked for.

    Raises ModuleNotFoundError then, if it is not installed.

    >>> fractions = Later("fractions")
    >>> fractions.Fraction(1, 2)
    Fraction(1, 2)
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # whoever looks a module over does not use it
            raise AttributeError(name)
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)
        return value
