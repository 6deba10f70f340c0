# SPDX-License-Identifier: GPL-2.0-only
"""What all widgets share: controls above, what they lead to below, complaints between; and how values are shown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ipywidgets import (
    HTML,
    Box,
    Button,
    Checkbox,
    Dropdown,
    IntSlider,
    Layout,
    Play,
    Select,
    Text,
    VBox,
    link,
)

from kvm_pf.bits import PFERR, Bit, encode
from kvm_pf.common.errors import InputError
from kvm_pf.common.text import write_number
from kvm_pf.run.inputs import U64_MAX
from kvm_pf.show.markup import Html, Shown, bold, code, element, framed, join, notice

_HEX = re.compile(r"(?:0[xX])?([0-9a-fA-F]{1,64})", re.ASCII)


def read_code(text: str, table: Sequence[Bit] = PFERR, what: str = "error code") -> int:
    """Read a u64 from hexadecimal digits, with or without 0x, or from names of bits ("WRITE|USER").

    Raises InputError naming the text, shortened, and what it may be.
    """
    text = text.strip()
    try:
        digits = _HEX.fullmatch(text)
        number = int(digits[1], 16) if digits else encode(text, tuple(table)) if text else None
    except ValueError:
        number = None
    if number is None or number > U64_MAX:
        named = ", ".join(row.name for row in table if row.name)
        names = f", or names of bits joined by | ({named})" if named else ""
        raise InputError(f"{what} {text!r:.60}: it takes up to 16 hexadecimal digits{names}")
    return number


# Controls, each with a label and a tooltip


def _row(width: str = "auto") -> Layout:
    return Layout(width=width, max_width="100%")


def _label(text: str) -> dict[str, object]:
    return {"description": text, "style": {"description_width": "initial"}}


def text_box(label: str, tooltip: str, value: str = "", width: str = "26em") -> Text:
    """A line of text, read when it is left or Enter is pressed."""
    return Text(value, tooltip=tooltip, continuous_update=False, layout=_row(width), **_label(label))


def choice(label: str, tooltip: str, options: Sequence[Any], value: Any, width: str = "auto") -> Dropdown:
    """A choice of one."""
    return Dropdown(options=options, value=value, tooltip=tooltip, layout=_row(width), **_label(label))


def tick(label: str, tooltip: str, value: bool = False) -> Checkbox:
    """A yes or no."""
    return Checkbox(value, description=label, tooltip=tooltip, indent=False, layout=_row())


def button(label: str, tooltip: str) -> Button:
    """Something to do."""
    return Button(description=label, tooltip=tooltip, layout=_row())


def place(label: str, tooltip: str, length: int) -> tuple[Play, IntSlider, list[Button]]:
    """A place in a sequence, from 1: a player and a slider that go together, and buttons to step back and forth."""
    slider = IntSlider(1, 1, length, tooltip=tooltip, layout=_row("24em"), **_label(label))
    play = Play(1, 1, length, interval=1500, description=label, tooltip="go on by itself", show_repeat=False)
    back, forth = button("◀ back", "one back"), button("forth ▶", "one forth")
    link((play, "value"), (slider, "value"))
    back.on_click(lambda _: slider.set_trait("value", max(slider.value - 1, 1)))
    forth.on_click(lambda _: slider.set_trait("value", min(slider.value + 1, length)))
    return play, slider, [back, forth]


def line(*parts: Any) -> Box:
    """Lay out controls beside each other, in as many lines as the page needs."""
    return Box(
        parts, layout=Layout(display="flex", flex_flow="row wrap", align_items="center", grid_gap="2px 12px")
    )


# The panel


class Panel(VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Controls, a place for complaints, and the output.

    `controls` maps names to controls; `output.value` is HTML.  A change of a control calls `react` with the
    control's name.  If that raises InputError, the complaint is shown and everything else stays as it was.
    """

    def __init__(self, controls: Mapping[str, Any], top: Sequence[Any], bottom: Sequence[Any] = ()) -> None:
        self.controls = dict(controls)
        self.message = HTML()
        self.output = HTML()
        self._quiet = False
        super().__init__([*top, self.message, self.output, *bottom])
        for name, control in self.controls.items():
            if not isinstance(control, Button):
                control.observe(self._listen(name), "value")

    def _listen(self, name: str) -> Callable[[object], None]:
        def heard(_: object) -> None:
            if self._quiet:
                return
            complaint = ""
            try:
                with self.quiet():
                    self.react(name)
            except InputError as error:
                complaint = str(error)
            self.message.value = notice(complaint)

        return heard

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Let controls be set without a reaction."""
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def react(self, name: str) -> None:
        """Take over the value of the control `name` and draw."""
        raise NotImplementedError

    def settings(self) -> Html:
        """Tell how the controls stand."""
        told = [
            join([control.description, ": ", bold(_standing(control))])
            for control in self.controls.values()
            if control.description and not isinstance(control, Button | Play)
        ]
        return join(told, " · ")

    def static(self) -> Shown:
        """Return what the widget shows now, to stand in a page without a kernel."""
        return Shown(f"{self!r}, as it stands", framed(self.told()))

    def told(self) -> Html:
        """Return what `static` shows, without the frame."""
        return join([element("p", self.settings()), Html(self.message.value), *self.parts()])

    def draw(self) -> None:
        """Show the parts in the output."""
        self.output.value = framed(*self.parts())

    def parts(self) -> Iterable[Html]:
        """Yield what the widget shows."""
        raise NotImplementedError


def _standing(control: Any) -> object:
    if isinstance(control, Checkbox):
        return "yes" if control.value else "no"
    if isinstance(control, Text):
        return code(control.value)
    if isinstance(control, Dropdown | Select):
        return control.label
    return control.value


# Values


def show(value: Any) -> str:
    """Write a value: a small number in decimal, others in hexadecimal, a record by its fields that are not 0."""
    match value:
        case None:
            return "–"
        case int():
            return write_number(value)
        case tuple():
            if not hasattr(value, "_fields"):
                return f"({', '.join(map(show, value))})"
            told = [f"{name}={show(part)}" for name, part in fields(value) if part]
            return ", ".join(told) or "all 0"
    return str(value)


def fields(record: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of a NamedTuple with their paths, those of inner ones included."""
    for name, value in zip(record._fields, record, strict=True):
        if hasattr(value, "_fields"):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def ids(lines: Iterable[str]) -> str:
    """Write ids of patch lines; of many, the first and the last of those that follow each other.

    >>> ids(["h2+01", "h2+02", "h2+03", "h2+05"])
    'h2+01…03, h2+05'
    """
    runs: list[list[str]] = []
    for each in lines:
        previous = runs[-1][-1] if runs else ""
        follows = previous[:3] == each[:3] and int(previous[3:]) + 1 == int(each[3:])
        if follows:
            runs[-1].append(each)
        else:
            runs.append([each])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}…{run[-1][3:]}" for run in runs)
