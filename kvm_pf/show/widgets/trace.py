# SPDX-License-Identifier: GPL-2.0-only
"""The trace reader: paste lines or choose a file, and read what the faults are, a sentence each, and in pictures."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ipywidgets import FileUpload, Layout, Textarea

from kvm_pf.common.errors import InputError
from kvm_pf.common.files import read as read_file
from kvm_pf.common.text import visible
from kvm_pf.common.typed import typed
from kvm_pf.run.codes import read as read_code
from kvm_pf.show.markup import Html, bold, code, element, join, table
from kvm_pf.show.widgets.panel import Panel, button, choice, line
from kvm_pf.trace.pasted import LARGEST, Kind, Pasted, load_text, read_text, repeated

BOX = "the box"
"""What is read if no file is."""

MOST = 40
"""The most kinds of fault that are listed."""

HINT = "Paste lines of a trace, or a code, into the box, then press Tab or the button; or choose a file."

PICTURES: dict[str, str] = {
    "none": "",
    "how they ended, by access": "access_by_outcome",
    "bits that are set together": "bits_together",
    "faults over time": "faults_over_time",
    "the page with the most faults": "page_life",
    "pages and storms": "storm",
}
"""The pictures by what the control calls them; they need pandas and matplotlib."""

CPUS = {"amd": "an AMD CPU", "intel": "an Intel CPU", "both": "AMD and Intel CPUs, so two traces in one"}


@typed()
def trace_reader(lines: str = "", file: str | Path | None = None, picture: str = "none") -> TraceReader:
    """Return a reader of traces; it begins with `lines`, or with `file`, and with one of PICTURES.

    Raises InputError if the file cannot be read, or for another picture.
    """
    return TraceReader(lines, file, picture)


class TraceReader(Panel):
    """Faults of a trace: each kind once, with how often.  Controls: lines, read, file, picture."""

    def __init__(self, lines: str, file: str | Path | None, picture: str) -> None:
        options = list(PICTURES) if find_spec("pandas") and find_spec("matplotlib") else ["none"]
        if picture not in PICTURES:
            raise InputError(f"picture={picture!r:.60}: it takes one of {', '.join(PICTURES)}")
        if picture not in options:
            raise InputError(f"picture={picture!r}: pictures take pandas and matplotlib, which are not here")
        box = Textarea(
            lines, description="lines", tooltip="lines of a trace, a log or a mail", placeholder=HINT, rows=7,
            continuous_update=False, layout=Layout(width="100%"), style={"description_width": "initial"},
        )  # fmt: skip
        upload = FileUpload(
            accept="", multiple=False, description="file", tooltip="a trace of any tool, packed or not"
        )
        controls = {
            "lines": box,
            "read": button("read", "read the lines in the box"),
            "file": upload,
            "picture": choice("picture", "a picture of the faults below", options, picture),
        }
        self._name, self._data = BOX, lines.encode(errors="replace")
        if file is not None:
            self._name, self._data = Path(file).name, read_file(file, LARGEST)
        shown = [controls["read"], upload, *([controls["picture"]] if len(options) > 1 else [])]
        super().__init__(controls, [box, line(*shown)], wide=True)
        controls["read"].on_click(self._listen("lines"))
        self._take(self._name, self._data)

    def react(self, name: str) -> None:
        """Read what was pasted or chosen, and draw."""
        if name == "lines":
            self._take(BOX, self.controls["lines"].value.encode(errors="replace"))
        elif name == "file" and self.controls["file"].value:
            chosen = self.controls["file"].value[0]
            self._take(str(chosen["name"]), bytes(chosen["content"]))
        else:
            self._draw(self._name, self._data, self.pasted)

    def _take(self, name: str, data: bytes) -> None:
        pasted = read_text(data, name)
        self._draw(name, data, pasted)
        self._name, self._data, self.pasted = name, data, pasted

    def _draw(self, name: str, data: bytes, pasted: Pasted) -> None:
        """Make all parts before any is taken over, so that what cannot be read changes nothing."""
        shown = list(self._made(name, data, pasted))
        self._parts = shown
        self.draw()

    def parts(self) -> Iterator[Html]:
        """Yield what was read: in a sentence, as a table, as a picture."""
        yield from self._parts

    def _made(self, name: str, data: bytes, pasted: Pasted) -> Iterator[Html]:
        if not data.strip():
            yield element("p", HINT)
            return
        if not pasted.faults:
            yield from _no_fault(name, data, pasted)
            return
        kinds = pasted.kinds()
        yield element("p", bold(_heading(name, pasted, kinds)))
        yield from _read_as(pasted)
        for kind in repeated(kinds)[:3]:
            yield element("p", "Again and again: ", _again(kind))
        picture = PICTURES[self.controls["picture"].value]
        if picture:
            yield _picture(picture, data, name)
        yield _table(kinds)
        yield from _aside(pasted)
        yield from _unread(pasted)

    def settings(self) -> Html:
        """Tell what was read, and which picture is drawn."""
        boxed = self._name == BOX
        parts = {
            "lines": len(self._data.splitlines()) if boxed else "none",
            "file": "none" if boxed else self._name,
            "picture": self.controls["picture"].value,
        }
        return join([join([name, ": ", bold(value)]) for name, value in parts.items()], " · ")

    def __repr__(self) -> str:
        return f"trace_reader({self._name}, {len(self.pasted.faults)} faults)"


def _no_fault(name: str, data: bytes, pasted: Pasted) -> Iterator[Html]:
    """A code alone is decoded; anything else without a fault is refused."""
    text = data[:4096].decode(errors="replace").strip()
    if pasted.events:
        yield element("p", f"No fault among {_count(pasted.events, 'event')} in {name}.")
        yield from _aside(pasted)
        yield from _unread(pasted)
        return
    if pasted.unread:
        first = pasted.unread[0]
        raise InputError(
            f"{name}, line {first.line}: {first.why}; such a line is `kvm_page_fault: address febd0000 error_code 181`"
        )
    try:
        answer = read_code(text)
    except InputError:
        raise InputError(
            f"{name}: no event of KVM's page faults in {_count(pasted.lines, 'line')}; one is, for example, "
            "`kvm_page_fault: address febd0000 error_code 181`"
        ) from None
    best = answer.best
    yield element("p", code(f"{best.code:#x}"), ": ", bold(best.meaning.sentence))
    yield element("p", f"{best.title}; {best.sure.words}: {best.why}")
    for other in answer.others[:3]:
        yield element("p", f"or {other.title}: {other.meaning.sentence} ({other.sure.words})")
    if answer.exit:
        yield element("p", f"or {answer.exit}")


def _read_as(pasted: Pasted) -> Iterator[Html]:
    """Name the revision that the trace shows, if it shows one."""
    if pasted.read_as is not None and pasted.read_as.known:
        yield element("p", f"Read as {pasted.read_as}.")


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' if n != 1 else ''}"


def _heading(name: str, pasted: Pasted, kinds: list[Kind]) -> str:
    cpu = f", of {CPUS[pasted.vendor]}" if pasted.vendor else ""
    unlike = f", {_count(len(kinds), 'kind')}" if len(kinds) > 1 else ""
    lost = f"; {_count(len(pasted.unread), 'line')} not read" if pasted.unread else ""
    return f"{_count(len(pasted.faults), 'fault')} in {name}{cpu}{unlike}{lost}"


def _again(kind: Kind) -> str:
    f = kind.first.fault
    who = f"vCPU {f.vcpu}" if f.vcpu is not None else f"pid {f.pid}" if f.pid is not None else "one vCPU"
    rate = f", {kind.rate:,.0f} a second" if kind.rate else ""
    where = "" if f.address is None else f", at {f.address:#x}"
    rip = "" if f.rip is None else f", rip {f.rip:#x}"
    return f"{len(kind.faults):,} times{rate}, {who}{rip}: {kind.first.sentence}{where}; {f.outcome}"


def _hex(value: int | None) -> Html | str:
    return "–" if value is None else code(f"{value:#x}")


def _table(kinds: list[Kind]) -> Html:
    rows = []
    for kind in kinds[:MOST]:
        f, said = kind.first.fault, kind.first.sense
        cut = not f.whole and said.encoding == "npf"
        shown = join([_hex(f.raw_code), " (cut to 32 bits)"]) if cut else _hex(f.raw_code)
        again = f"{len(kind.faults):,} ×" if len(kind.faults) > 1 else ""
        vcpu = "–" if f.vcpu is None else str(f.vcpu)
        rows.append(
            (str(f.line), again, bold(said.meaning), f.outcome, shown, _hex(f.address), _hex(f.rip), vcpu)
        )
    more = f"; {len(kinds) - MOST:,} more kinds are not shown" if len(kinds) > MOST else ""
    head = ("line", "times", "what the guest did", "how it ended", "code", "address", "rip", "vCPU")
    return table(f"each kind of fault, where it came first{more}", head, rows)


def _aside(pasted: Pasted) -> Iterator[Html]:
    """Yield what the events tell that are no faults, as `kvm-pf trace` does."""
    for title, lines, of in pasted.aside:
        more = f"; {of - len(lines):,} more are not shown" if of > len(lines) else ""
        yield element("p", bold(title + more))
        yield element("ul", *(element("li", visible(each.strip())) for each in lines))


def _unread(pasted: Pasted) -> Iterator[Html]:
    for each in pasted.unread[:3]:
        yield element("p", f"not read, line {each.line}: {each.why}: ", code(visible(each.text[:80])))


def _picture(name: str, data: bytes, shown_as: str) -> Html:
    """Draw one of PICTURES, as an image inside the page."""
    from kvm_pf.show import traces
    from kvm_pf.show.draw import png
    from kvm_pf.trace import conversions

    traced = load_text(data, shown_as)
    faults = traced.faults
    if name == "page_life":
        pages = faults["gfn"].dropna()
        if pages.empty:
            return element("p", f"No fault in {shown_as} has an address: no page's life to draw.")
        drawn: Any = traces.page_life(faults, int(pages.mode().iloc[0]), conversions(traced))
    else:
        draw: Callable[..., Any] = getattr(traces, name)
        drawn = draw(faults)
    source = f"data:image/png;base64,{b64encode(png(drawn, 60)).decode()}"
    label = next(text for text, function in PICTURES.items() if function == name)
    return Html(f'<img src="{source}" alt="{label}" style="max-width:100%">')
