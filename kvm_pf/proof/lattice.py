# SPDX-License-Identifier: GPL-2.0-only
"""Which changes keep which claims: the patch's three in all combinations, and the later patches one by one.

combinations() -> DataFrame: a row for each combination, a column for each claim: holds, empty, fails, unknown
later() -> DataFrame: a row for the prerequisite's lack, the patch, and each later patch on top of it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from kvm_pf.proof.ask import find, prove
from kvm_pf.proof.claims import EMPTY, FAILS, HOLDS, Claim
from kvm_pf.revisions import LATTICE, REVISIONS, Revision

if TYPE_CHECKING:
    import pandas as pd

PATCH_CLAIMS = (
    "outside-bits-never-survive", "private-means-sw-protected", "private-means-declared", "declared-is-private",
    "reserved-never-private", "code-says-private", "private-exactly-then", "look-ups-where-needed",
    "other-vms-see-nothing", "five-differences",
)  # fmt: skip
"""The claims that tell the combinations of the patch's changes apart."""

SERIES_CLAIMS = (
    "declared-is-private", "cpu-cannot-forge", "pf-codes-have-32-bits", "callers-may-say-private",
    "private-means-declared", "private-and-reserved-is-not-mmio", "private-and-reserved-is-refused",
    "goes-on-means-agreed", "private-is-never-mmio", "private-page-ready-is-stopped",
)  # fmt: skip
"""The claims that the prerequisite and the later patches are about."""


class SeriesPatch(NamedTuple):
    """A later patch: what it is called here, the revision that has its steps, and their names."""

    name: str
    source: str
    revision: str
    steps: tuple[str, ...]


LATER = (
    SeriesPatch(
        "06: a #PF has 32 bits",
        "<20240228024147.41573-7-seanjc@google.com>",
        "posted_series",
        ("legacy_pf_code",),
    ),
    SeriesPatch(
        "07: #NPF drops the bits",
        "<20240228024147.41573-8-seanjc@google.com>",
        "posted_series",
        ("sanitize", "npf_synthetic"),
    ),
    SeriesPatch(
        "08: private and reserved is warned of",
        "<20240228024147.41573-9-seanjc@google.com>",
        "posted_series",
        ("reserved_fault",),
    ),
    SeriesPatch(
        "09 to 16: private against shared first",
        "<20240228024147.41573-10-seanjc@google.com> to <20240228024147.41573-17-seanjc@google.com>",
        "posted_series",
        ("kvm_handle_noslot_fault", "faultin_pfn", "kvm_faultin_pfn", "INITIAL_PFN", "INITIAL_HVA"),
    ),
    SeriesPatch(
        "merged: private and reserved is refused",
        "Linux commit 07702e5a6d6d (v6.10)",
        "v6_10",
        ("reserved_fault",),
    ),
    SeriesPatch(
        "merged: a private page that became ready is warned of",
        "Linux commit cd389f507003 (v6.10)",
        "v6_10",
        ("page_ready_code",),
    ),
)
"""What came after the patch, in the order of the posted series; then what the merged series did otherwise."""


@cache
def stages() -> dict[str, Revision]:
    """The prerequisite's lack, the patch, and each later patch on top of all before it, by name."""
    revision = REVISIONS["posted"]
    found = {"05 without 04: codes of 32 bits": REVISIONS["posted_u32"], "05: as posted": revision}
    for patch in LATER:
        steps = {step: REVISIONS[patch.revision].step(step) for step in patch.steps}
        revision = revision.derive(patch.name, patch.source, **steps)
        found[patch.name] = revision
    return found


def table(revisions: Mapping[str, str | Revision], claims: Sequence[str | Claim]) -> pd.DataFrame:
    """Ask claims of revisions; a row for each revision, by the name it is given here, a column for each claim.

    The answers are those of `kvm_pf.proof.claims`: holds, empty, fails, unknown.
    """
    import pandas as pd

    rows = [[prove(claim, r, shrink=False).status for claim in claims] for r in revisions.values()]
    columns = [find(claim).name for claim in claims]
    return pd.DataFrame(rows, pd.Index(list(revisions), name="revision"), columns, dtype="str")


def combinations(claims: Sequence[str | Claim] = PATCH_CLAIMS) -> pd.DataFrame:
    """Ask claims of every combination of the patch's three changes; index: the changes taken, in words."""
    made = {"none": REVISIONS["before"]}
    for name in sorted(LATTICE, key=lambda name: len(LATTICE[name])):
        made[" + ".join(LATTICE[name])] = REVISIONS[name]
    return table(made, claims)


def later(claims: Sequence[str | Claim] = SERIES_CLAIMS) -> pd.DataFrame:
    """Ask claims of the patch without its prerequisite, of the patch, and of each later patch on top."""
    return table(stages(), claims)


def turned(answers: pd.DataFrame, before: Sequence[str], after: Sequence[str]) -> dict[str, list[str]]:
    """List, for each row after the first, the claims whose answer is one of `after` and was one of `before`."""
    rows = answers.to_dict("index").items()
    return {
        str(name): [str(claim) for claim in row if last[claim] in before and row[claim] in after]
        for (_, last), (name, row) in pairwise(rows)
    }


def closed(answers: pd.DataFrame) -> dict[str, list[str]]:
    """List, for each row after the first, the claims that it mends: failing before, holding now."""
    return turned(answers, (FAILS,), (HOLDS, EMPTY))


def opened(answers: pd.DataFrame) -> dict[str, list[str]]:
    """List, for each row after the first, the claims that it breaks."""
    return turned(answers, (HOLDS, EMPTY), (FAILS,))
