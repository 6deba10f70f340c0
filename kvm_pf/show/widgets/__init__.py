# SPDX-License-Identifier: GPL-2.0-only
"""Widgets to try the fault path with: each function returns one, to be used in a notebook.

A keyboard and a screen reader work everywhere, and no screen is needed to test them: set `.value` of one of
`.controls`, read `.output.value`.  `.static()` is the twin that a committed notebook shows where nothing runs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvm_pf.show.widgets.checker import patch_checker
    from kvm_pf.show.widgets.claims import claim_asker
    from kvm_pf.show.widgets.corpus import corpus_browser
    from kvm_pf.show.widgets.error_code import error_code_explorer
    from kvm_pf.show.widgets.fault import fault_explorer
    from kvm_pf.show.widgets.hunks import hunk_viewer
    from kvm_pf.show.widgets.scenario import scenario_player
    from kvm_pf.show.widgets.steps import step_player
    from kvm_pf.show.widgets.trace import trace_reader
    from kvm_pf.show.widgets.turn import your_turn

_ROOMS = {
    "claim_asker": "claims",
    "corpus_browser": "corpus",
    "error_code_explorer": "error_code",
    "fault_explorer": "fault",
    "hunk_viewer": "hunks",
    "patch_checker": "checker",
    "scenario_player": "scenario",
    "step_player": "steps",
    "trace_reader": "trace",
    "your_turn": "turn",
}

__all__ = (
    "claim_asker", "corpus_browser", "error_code_explorer", "fault_explorer", "hunk_viewer", "patch_checker",
    "scenario_player", "step_player", "trace_reader", "your_turn",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'kvm_pf.show.widgets' has no attribute {name!r}")
    return getattr(import_module(f"kvm_pf.show.widgets.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_ROOMS))
