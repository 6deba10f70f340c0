# SPDX-License-Identifier: GPL-2.0-only
"""The corpus browser: find a curated case, see why it is there, and run it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from ipywidgets import Layout, Select, VBox

from kvm_pf.common.errors import InputError
from kvm_pf.conformance.cases import NO_OUTPUT, read_cases, run_case
from kvm_pf.revisions import REVISIONS, get
from kvm_pf.run.tables import TABLES
from kvm_pf.show.markup import Html, bold, code, element, join, table
from kvm_pf.show.widgets.fault import FaultExplorer
from kvm_pf.show.widgets.panel import Panel, button, choice, line, show, text_box

ANY = "any"
FILTERS = ("flag", "kind", "topic", "revision")

Case = list[dict[str, Any]]
"""The rows of one case, one for each revision that it has an expectation for."""


def corpus_browser() -> CorpusBrowser:
    """Return a browser of the curated cases."""
    return CorpusBrowser()


class CorpusBrowser(Panel):
    """The curated cases: `found` are the ids that pass the filters, `case` the rows of the chosen one.

    Controls: flag, kind, topic, revision, outcome, case, open.  `explorer` is the fault explorer, once opened.
    """

    def __init__(self) -> None:
        self._cases: dict[str, Case] = {}
        for row in read_cases():
            self._cases.setdefault(row["id"], []).append(row)
        rows = [row for case in self._cases.values() for row in case]
        flags = sorted({flag for row in rows for flag in row["flags"]})
        topics = list(dict.fromkeys(row["topic"] for row in rows))
        there = [name for name in REVISIONS if any(row["revision"] == name for row in rows)]
        controls = {
            "flag": choice("flag", "cases whose input has this property", [ANY, *flags], ANY),
            "kind": choice("kind", "which table, or one function", [ANY, *TABLES, "call"], ANY),
            "topic": choice("topic", "which step or matter", [ANY, *topics], ANY),
            "revision": choice("revision", "cases that say something of this kernel", [ANY, *there], ANY),
            "outcome": text_box("outcome or words", "every word must stand in id, why or outcome (ret=1); Enter finds"),
            "case": Select(
                options=list(self._cases), description="case", rows=9, tooltip="which case is shown",
                layout=Layout(width="30em", max_width="100%"), style={"description_width": "initial"},
            ),
            "open": button("open in the fault explorer", "set the fault explorer below to this case"),
        }  # fmt: skip
        self.explorer: FaultExplorer | None = None
        self.below = VBox()
        filters = [controls[name] for name in (*FILTERS, "outcome")]
        super().__init__(controls, [line(*filters), controls["case"], controls["open"]], [self.below])
        controls["open"].on_click(lambda _: self.attempt(self.explore))
        self._words = {name: _told(case) for name, case in self._cases.items()}
        self._marks = {name: _marks(case) for name, case in self._cases.items()}
        self._filter()

    @property
    def found(self) -> list[str]:
        """The ids of the cases that pass the filters."""
        return list(self.controls["case"].options)

    @property
    def case(self) -> Case:
        """The rows of the case that is shown; none if no case passes."""
        return self._cases.get(self.controls["case"].value, [])

    def react(self, name: str) -> None:
        """Filter, or show the chosen case."""
        if name == "case":
            self._show()
        else:
            self._filter()

    def _filter(self) -> None:
        chosen = {(name, self.controls[name].value) for name in FILTERS if self.controls[name].value != ANY}
        typed = self.controls["outcome"].value.lower().split()
        found = [
            name
            for name, marks in self._marks.items()
            if chosen <= marks and all(word in self._words[name] for word in typed)
        ]
        before = self.controls["case"].value
        with self.quiet():
            self.controls["case"].options = found
            self.controls["case"].value = before if before in found else found[0] if found else None
        self._show()

    def _show(self) -> None:
        case = self.case
        self.controls["open"].disabled = not case or case[0]["kind"] != "cases"
        self.draw()

    def explore(self) -> None:
        """Set the fault explorer to the chosen case, on the first revision that it speaks of, or the chosen one."""
        chosen = self.controls["revision"].value
        row = next((row for row in self.case if row["revision"] == chosen), self.case[0])
        if self.explorer is None:
            self.explorer = FaultExplorer(get(row["revision"]), row["input"])
            self.below.children = [self.explorer]
        else:
            self.explorer.set(row["revision"], **row["input"])

    def parts(self) -> Iterator[Html]:
        """Yield how many cases were found, and the chosen one."""
        yield element("p", bold(f"{len(self.found)} of {len(self._cases)} cases"))
        if self.case:
            yield from _detail(self.case)

    def told(self) -> Html:
        """Return what `static` shows, with the fault explorer once it is open."""
        return join([super().told(), self.explorer.told() if self.explorer else ""])

    def __repr__(self) -> str:
        return f"corpus_browser({self.controls['case'].value})"


def _told(case: Case) -> str:
    parts = [case[0]["id"], case[0]["why"]]
    parts += [f"{name}={show(value)}" for row in case for name, value in row["expect"].items()]
    return " ".join(parts).lower()


def _marks(case: Case) -> set[tuple[str, str]]:
    """What the filters may ask for, as (filter, value)."""
    first = case[0]
    marks = {("kind", first["kind"]), ("topic", first["topic"])}
    return (
        marks | {("flag", flag) for flag in first["flags"]} | {("revision", row["revision"]) for row in case}
    )


def _detail(case: Case) -> Iterator[Html]:
    first = case[0]
    given = join([code(f"{name}={show(value)}") for name, value in first["input"].items()], ", ")
    facts = [
        ("why", first["why"]),
        ("input", given or "the defaults"),
        ("kind", f"{first['kind']} {first['function']}".rstrip() + f", topic {first['topic']}"),
        ("flags", ", ".join(first["flags"])),
        ("source", first["source"]),
    ]
    yield table(first["id"], ("", "what is not given has its default"), facts)
    yield from _verdict(case)


def _verdict(case: Case) -> Iterator[Html]:
    """Yield expectation beside model, revisions for which both are the same in one column, and what to make of it."""
    columns: dict[tuple[tuple[str, str], ...], list[str]] = {}
    complaint = ""
    for row in case:
        try:
            got = run_case(row)
        except InputError as error:
            got, complaint = {}, f"the model was not run: {error}"
        cells = [
            (name, _compared(value, got.get(name, NO_OUTPUT), got)) for name, value in row["expect"].items()
        ]
        columns.setdefault(tuple(cells), []).append(row["revision"])
    values = [text for cells, names in columns.items() for _, text in cells for _ in names]
    wrong = sum("✗" in text for text in values)
    verdict = complaint or f"{len(values)} values expected; the model differs in {wrong or 'none'}"
    heads = ("output", *(join(names, Html("<br>")) for names in columns.values()))
    told = [dict(cells) for cells in columns]
    rows = [
        [code(name), *(bold(text) if "✗" in text else text for text in (each.get(name, "") for each in told))]
        for name in dict.fromkeys(name for cells in columns for name, _ in cells)
    ]
    yield table(verdict, heads, rows)


def _compared(expected: object, got: object, ran: Collection[str]) -> str:
    """Write an expected value, and the model's if it is another one."""
    if not ran:
        return _value(expected)
    return f"{_value(expected)} ✓" if got == expected else f"{_value(expected)} ✗ model: {_value(got)}"


def _value(value: object) -> str:
    return "none" if value == "" else "not reached" if value is None else show(value)
