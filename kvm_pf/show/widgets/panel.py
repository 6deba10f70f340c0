# SPDX-License-Identifier: GPL-2.0-only
"""What all widgets share: settings on the left, what they lead to beside them; and how values are shown."""

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
    Layout,
    Select,
    Text,
    Textarea,
    VBox,
)

from kvm_pf.bits import PFERR, Bit, encode
from kvm_pf.common.errors import InputError
from kvm_pf.common.text import write_number
from kvm_pf.run.inputs import U64_MAX
from kvm_pf.show.markup import Html, Shown, bold, code, element, framed, join, notice
from kvm_pf.show.widgets.bits import BitGrid
from kvm_pf.show.widgets.place import Place
from kvm_pf.show.widgets.status import Status, spoken

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


def text_box(label: str, tooltip: str, value: str = "", width: str = "24em") -> Text:
    """A line of text, read when it is left or Enter is pressed."""
    return Text(value, tooltip=tooltip, continuous_update=False, layout=_row(width), **_label(label))


def text_area(label: str, tooltip: str, rows: int) -> Textarea:
    """Lines of a program, read when they are left."""
    area = Textarea(
        rows=rows,
        tooltip=tooltip,
        continuous_update=False,
        layout=_row("100%"),
        description=label,
        style={"description_width": "0"},
    )  # fmt: skip
    area.add_class("kvm-pf-text")
    return area


def choice(label: str, tooltip: str, options: Sequence[Any], value: Any, width: str = "auto") -> Dropdown:
    """A choice of one."""
    return Dropdown(options=options, value=value, tooltip=tooltip, layout=_row(width), **_label(label))


def tick(label: str, tooltip: str, value: bool = False) -> Checkbox:
    """A yes or no."""
    return Checkbox(value, description=label, tooltip=tooltip, indent=False, layout=_row())


def button(label: str, tooltip: str) -> Button:
    """Something to do."""
    return Button(description=label, tooltip=tooltip, layout=_row())


def place(label: str, tooltip: str, length: int) -> dict[str, Any]:
    """A place in a sequence, from 1: controls `label`, which can run by itself, `back` and `forth`."""
    here, back, forth = (
        Place(label, tooltip, length), button("◀ back", "one back"), button("forth ▶", "one forth")
    )  # fmt: skip
    back.on_click(lambda _: here.move(-1))
    forth.on_click(lambda _: here.move(1))
    return {label: here, "back": back, "forth": forth}


def line(*parts: Any) -> Box:
    """Lay out controls beside each other, in as many lines as the page needs."""
    return Box(
        parts, layout=Layout(display="flex", flex_flow="row wrap", align_items="center", grid_gap="2px 12px")
    )


# The panel


LIVE = """<style>
.kvm-pf-panel .kvm-pf.kvm-pf table, .kvm-pf-panel .kvm-pf.kvm-pf code {font-size: 12px}
@media (min-width: 700px) {
.kvm-pf-panel .kvm-pf.kvm-pf .halves > div {max-height: 560px; overflow: auto}
.kvm-pf-results {max-height: 620px; overflow: auto}
}
.kvm-pf-panel.kvm-pf-panel ::placeholder {color: inherit; opacity: .75}
@media (forced-colors: active) {.kvm-pf-panel .jupyter-button {border: 1px solid}}
.kvm-pf-results .widget-html-content {min-width: 0}
.kvm-pf-text.kvm-pf-text > label {position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%)}
.kvm-pf-text.kvm-pf-text textarea {font: 12px/1.35 monospace; margin-right: 4px}
</style>"""
"""What widgets look like beside what they show, so that settings and results are on one screen."""


class Panel(VBox):  # type: ignore[misc]  # ipywidgets has no types
    """Settings, and beside them complaints and the output; where there is no room, the output comes below.

    `controls` maps names to controls; `output.value` is HTML, and `status.value` what is spoken of it.  A change of a
    control calls `react` with the control's name.  If that raises InputError, the complaint is shown and everything
    else stays as it was.  `settings` are the controls as they are laid out: `wide` ones stand above the output, others
    beside it, `widest` pixels wide at most.
    """

    def __init__(
        self,
        controls: Mapping[str, Any],
        settings: Sequence[Any],
        below: Sequence[Any] = (),
        wide: bool = False,
        widest: int = 440,
    ) -> None:
        self.controls = dict(controls)
        self.message = HTML()
        self.output = HTML()
        self.status = Status()
        self._quiet = False
        look = HTML(LIVE, layout=Layout(display="none"))
        results = [self.message, self.output, self.status]
        if wide:
            super().__init__([look, *settings, *results, *below])
        else:
            halves = Layout(
                display="flex", flex_flow="row wrap", align_items="flex-start", grid_gap="4px 14px"
            )
            left = VBox(
                [*settings],
                layout=Layout(flex=f"1 1 {widest - 100}px", min_width="0", max_width=f"{widest}px"),
            )
            right = VBox(results, layout=Layout(flex="3 1 440px", min_width="0"))
            right.add_class("kvm-pf-results")
            super().__init__([look, Box([left, right], layout=halves), *below])
        self.add_class("kvm-pf-panel")
        for name, control in self.controls.items():
            if not isinstance(control, Button):
                control.observe(self._listen(name), "value")

    def _listen(self, name: str) -> Callable[[object], None]:
        def heard(_: object) -> None:
            if not self._quiet:
                self.attempt(lambda: self.react(name))

        return heard

    def attempt(self, do: Callable[[], object]) -> bool:
        """Do something without reactions to controls that it sets; show its InputError; say whether it went well."""
        complaint = ""
        try:
            with self.quiet():
                do()
        except InputError as error:
            complaint = str(error)
        self.message.value = notice(complaint)
        return not complaint

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
        """Tell how the controls stand; of bits, a picture tells it."""
        told = [
            join([control.description, ": ", bold(_standing(control))])
            for control in self.controls.values()
            if control.description and not isinstance(control, Button | BitGrid | Textarea)
        ]
        return join(told, " · ")

    def static(self) -> Shown:
        """Return what the widget shows now, to stand in a page without a kernel."""
        return Shown(f"{self!r}, as it stands", framed(self.told()))

    def told(self) -> Html:
        """Return what `static` shows, without the frame."""
        grids = [control.picture() for control in self.controls.values() if isinstance(control, BitGrid)]
        return join([element("p", self.settings()), *grids, Html(self.message.value), *self.parts()])

    def draw(self) -> None:
        """Show the parts in the output."""
        self.put(join(self.parts()))

    def put(self, shown: Html) -> None:
        """Show something in the output, and let a screen reader say what comes first in it."""
        self.output.value = framed(shown)
        self.status.value = self.spoken(shown)

    def spoken(self, shown: Html) -> str:
        """Return what a screen reader is to say of it."""
        return spoken(shown)

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
