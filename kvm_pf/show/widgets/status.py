# SPDX-License-Identifier: GPL-2.0-only
"""What a screen reader says after a change, for the focus stays on the control."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import anywidget
from traitlets import Unicode

from kvm_pf.show.markup import Html

_HERE = Path(__file__).parent


class Status(anywidget.AnyWidget):
    """A line `value` that is spoken when it changes, and not seen.

    It also keeps JupyterLab from taking the keys that are meant for the panel around it: a letter that chooses from
    a list would otherwise insert or delete cells.
    """

    _esm = (_HERE / "status.js").read_text(encoding="utf-8")
    _css = (_HERE / "status.css").read_text(encoding="utf-8")
    value = Unicode().tag(sync=True)


def spoken(shown: Html) -> str:
    """Return the first two sentences or captions of HTML as text.

    >>> spoken(Html("<p><b>3 faults</b></p><table><caption>each kind</caption></table>"))
    '3 faults; each kind'
    """
    first = re.findall(r"<(p|caption)>(.*?)</\1>", shown, re.DOTALL)[:2]
    return "; ".join(unescape(re.sub(r"<[^>]+>", "", text)) for _, text in first)
