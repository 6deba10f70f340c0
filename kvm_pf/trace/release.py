# SPDX-License-Identifier: GPL-2.0-only
"""Which kernel a trace is of, as far as it shows that: the revision that it is read as."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from kvm_pf.bits import PFERR_GUEST_ENC_MASK, PFERR_PRIVATE_ACCESS
from kvm_pf.revisions import REVISIONS, ROWS, Revision, get, of_release
from kvm_pf.run.meanings import TDX_REVISION
from kvm_pf.run.refusals import release_of
from kvm_pf.trace.faults import hides_registers, protected
from kvm_pf.trace.record import Fault

if TYPE_CHECKING:
    import pandas as pd

    from kvm_pf.trace.faults import Joiner
    from kvm_pf.trace.lines import Reader

DEFAULT = "posted"
"""What a trace is read as that does not show its kernel."""


_KERNELS = {row.name: row.kernel for row in ROWS if row.kernel}


_ASKED = "as was asked for"
_NO_TDX = (
    f"; line {{}} shows a TDX guest, of which {TDX_REVISION} is the oldest revision that knows: --revision "
    f"{TDX_REVISION} (kernels from 6.16 on)"
)


class ReadAs(NamedTuple):
    """The revision that a trace is read as, and why that one; `known` is False if nothing decided."""

    revision: Revision
    why: str
    known: bool = True

    def __str__(self) -> str:
        return f"{self.revision.name}: {self.why}"


def asked_for(revision: Revision | str) -> ReadAs:
    """Read as somebody asked for, by name or release.  Raises InputError if there is no such revision."""
    known = get(revision)
    is_near = isinstance(revision, str) and revision not in REVISIONS and not _is_of(known, revision)
    return ReadAs(known, f"{_ASKED}{f', the nearest that is older than {revision}' if is_near else ''}")


def _is_of(known: Revision, release: str) -> bool:
    """Say whether a revision is a release's own, and not that of an older one."""
    own = known.row and known.row.kernel
    return own is not None and re.match(rf"v?{own[0]}\.{own[1]}(?!\d)", release) is not None


UNKNOWN = "the trace does not show its kernel; --revision 6.12 (revision=), for example, names it"

_MARKED = (
    "v6_12",
    "kvm_page_fault shows bit 49 beside bit 34 (line {}): an SNP guest's private access, a kernel from 6.11 on",
)
_TDX = TDX_REVISION, "rip 0 and no linear address (line {}): a TDX guest, a kernel from 6.16 on"
_FAST = "v6_10", "fast_page_fault shows bit 49 (line {}): a kernel from 6.10 on, whose field has 64 bits"
_RMP = "v6_12", "it has kvm_rmp_fault, as kernels from 6.11 on do"
_NARROW = "v6_1", "codes are cut to 32 bits: a kernel before 6.1, of which this is the nearest"
"""What a trace can show, and the oldest revision that does so.

Sources: Linux `arch/x86/kvm/svm/svm.c`, npf_interception(), and `arch/x86/kvm/trace.h`, kvm_rmp_fault (v6.11);
`arch/x86/kvm/mmu/mmutrace.h`, fast_page_fault (v6.10); `arch/x86/kvm/vmx/tdx.c` (v6.16); commit `bff0adc40c00` ("KVM:
x86: Use u64 for address and error code in page fault tracepoint") (v6.1).
"""


class Signs:
    """What a trace has shown of its kernel so far: `look` takes faults, `read_as` decides."""

    def __init__(self, given: Revision | str | None = None) -> None:
        self.given = None if given is None else asked_for(given)
        near = self.given is not None and self.given.why != _ASKED
        self.may_lack_tdx = near and self.given is not None and not self.given.revision.has("tdx")
        self.marked: int | None = None  # the first line of each kind
        self.tdx: int | None = None

    @property
    def waits(self) -> bool:
        """Say whether faults can tell more."""
        return (
            self.tdx is None if self.may_lack_tdx else self.given is None and None in (self.marked, self.tdx)
        )

    def look(self, faults: Iterable[Fault]) -> None:
        """Look at faults as they were joined."""
        if not self.waits:
            return
        for f in faults:
            code = f.raw_code
            if code is None:
                continue
            if self.marked is None and _is_marked(code, f.exit_code or 0):
                self.marked = f.line
            elif self.tdx is None and (
                f.source == "pending" or hides_registers(f.source, code, f.whole, protected(f.rip, f.address))
            ):
                self.tdx = f.line

    def look_at_table(self, faults: pd.DataFrame) -> None:
        """Look at a table of faults."""
        import numpy as np

        if not self.waits:
            return
        codes, exits = (
            faults[name].to_numpy(dtype=np.uint64, na_value=0) if name in faults else np.zeros(1, np.uint64)
            for name in ("raw_code", "exit_code")
        )
        lines = faults.get("line")
        found: list[int | None] = [self.marked, self.tdx]
        signs = _is_marked(codes, exits), (faults["encoding"] == "tdx").to_numpy(dtype=bool, na_value=False)
        for n, sign in enumerate(signs):
            if found[n] is None and sign.any():
                place = int(sign.argmax())
                found[n] = place + 1 if lines is None else int(lines.iloc[place])
        self.marked, self.tdx = found

    def read_as(self, joiner: Joiner | None = None, reader: Reader | None = None) -> ReadAs:
        """Decide: what was given, else the newest kernel that the trace shows, by itself or by name.

        What is shown counts more than a name that is older, for distributions carry newer code in older releases.
        """
        if self.given is not None:
            lacks = self.may_lack_tdx and self.tdx is not None
            return self.given._replace(why=self.given.why + _NO_TDX.format(self.tdx)) if lacks else self.given
        signs = [
            (name, why.format(line))
            for (name, why), line in ((_MARKED, self.marked), (_TDX, self.tdx))
            if line is not None
        ]
        if joiner is not None and joiner.private:
            signs.append((_FAST[0], _FAST[1].format(joiner.private[0][0])))
        if joiner is not None and joiner.events["kvm_rmp_fault"]:
            signs.append(_RMP)
        if reader is not None and reader.kernel and (named := _named(reader.kernel)):
            signs.append(named)
        if not signs and joiner is not None and joiner.narrow and not joiner.wide:
            signs.append(_NARROW)
        if not signs:
            return ReadAs(get(DEFAULT), UNKNOWN, known=False)
        name, why = max(signs, key=lambda sign: _KERNELS[sign[0]])
        return ReadAs(get(name), why)


def _is_marked(codes: Any, exits: Any) -> Any:
    """Say whether KVM added bit 49 to an SNP guest's private access: codes that were traced, the exits' (u64)."""
    both = PFERR_PRIVATE_ACCESS | PFERR_GUEST_ENC_MASK
    if not isinstance(codes, int):
        import numpy as np

        mask, bit = np.uint64(both), np.uint64(PFERR_PRIVATE_ACCESS)
        return (codes & mask == mask) & (exits & bit == 0)
    return codes & both == both and not exits & PFERR_PRIVATE_ACCESS


def _named(kernel: str) -> tuple[str, str] | None:
    """Find the revision for a kernel that the trace names; None if its name says little."""
    if (release := release_of(kernel)) is None:
        return None
    revision = of_release(release)
    if revision is None:
        return _NARROW[0], f"it names a kernel, Linux {kernel}; this is the oldest that there is"
    near = "" if _is_of(revision, kernel) else "; the nearest that is older"
    return revision.name, f"it names a kernel, Linux {kernel} (if that is the host's){near}"
