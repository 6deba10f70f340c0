# SPDX-License-Identifier: GPL-2.0-only
"""A place in a sequence: a slider that can run by itself, with names that a screen reader speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
from traitlets import Int, Unicode, validate

from kvm_pf.common.errors import InputError

_HERE = Path(__file__).parent


class Place(anywidget.AnyWidget):
    """A whole number `value` from `min` (1) to `max`; run by itself, it goes on every `interval` milliseconds."""

    _esm = (_HERE / "place.js").read_text(encoding="utf-8")
    _css = (_HERE / "place.css").read_text(encoding="utf-8")
    value = Int(1).tag(sync=True)
    min = Int(1).tag(sync=True)
    max = Int(1).tag(sync=True)
    interval = Int(1500).tag(sync=True)
    description = Unicode().tag(sync=True)
    tooltip = Unicode().tag(sync=True)

    def __init__(self, description: str, tooltip: str, length: int) -> None:
        super().__init__(description=description, tooltip=tooltip, max=length)

    @validate("value")
    def _there(self, proposal: dict[str, Any]) -> int:
        value: int = proposal["value"]
        if not self.min <= value <= self.max:
            raise InputError(
                f"{self.description}={value}: it takes a whole number from {self.min} to {self.max}"
            )
        return value

    def move(self, by: int) -> None:
        """Go on or back, as far as there are places."""
        self.value = max(self.min, min(self.value + by, self.max))
