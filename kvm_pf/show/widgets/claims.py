# SPDX-License-Identifier: GPL-2.0-only
"""The claim asker: put a claim to the solver, of any kernel; one that fails comes with the smallest witness."""

from __future__ import annotations

from collections.abc import Iterator

from kvm_pf.common.errors import InputError
from kvm_pf.common.typed import typed
from kvm_pf.patch.diff import compared
from kvm_pf.proof.ask import Answer, Witness, find, prove, step_lines
from kvm_pf.proof.claims import CLAIMS, PROVED
from kvm_pf.proof.terms import has_solver
from kvm_pf.revisions import REVISIONS, Revision, get
from kvm_pf.show.diff import diff_table, only_changes
from kvm_pf.show.markup import Html, bold, code, element
from kvm_pf.show.widgets.panel import Panel, button, choice, line

ASKED = tuple(name for name, claim in CLAIMS.items() if claim.strength == PROVED)
"""The claims that the solver answers; others are counted out, or read in a source."""


@typed()
def claim_asker(
    claim: str = "reserved-never-private", revision: str | Revision = "posted", ask: bool = False
) -> ClaimAsker:
    """Return a widget that asks a claim of a revision when its button is pressed, or, if `ask`, at once.

    Without the solver it can ask nothing, and says so when the button is pressed.

    Raises InputError if there is no such revision, or no such claim among those that the solver answers.
    """
    if find(claim).name not in ASKED:
        raise InputError(f"claim {claim!r} is not for the solver; those are {', '.join(ASKED)}")
    return ClaimAsker(claim, get(revision).name, ask)


class ClaimAsker(Panel):
    """A claim, asked: `answer` is what came of it, None until it is asked.  Controls: claim, revision, ask."""

    uses_solver = True

    def __init__(self, claim: str, revision: str, ask: bool) -> None:
        controls = {
            "claim": choice("claim", "what is claimed", ASKED, claim),
            "revision": choice("of", "the kernel that it is asked of", list(REVISIONS), revision),
            "ask": button("ask the solver", "prove it for all codes and states, or find where it is false"),
        }
        self.answer: Answer | None = None
        super().__init__(
            controls, [controls["claim"], line(controls["revision"], controls["ask"])], wide=True
        )
        controls["ask"].on_click(self._listen("ask"))
        self.react("ask" if ask and has_solver() else "claim")

    def react(self, name: str) -> None:
        """Ask, or forget the answer to another question."""
        claim, revision = self.controls["claim"].value, self.controls["revision"].value
        if name == "ask":
            if not has_solver():
                raise InputError("there is no solver here (z3), so that nothing can be proved yet")
            self.answer = prove(claim, revision)
        else:
            self.answer = None
        self.draw()

    def parts(self) -> Iterator[Html]:
        """Yield the claim and the answer; if it fails, the witness and its steps, beside a kernel that keeps it."""
        claim, answer = find(self.controls["claim"].value), self.answer
        yield element("p", bold(claim.statement))
        if answer is None:
            yield element("p", "Not asked yet.")
            return
        yield element("p", bold(f"{answer.revision.name}: {answer.status}"), f" ({answer.strength})")
        witness = answer.witness
        if witness is None:
            return
        yield from witness_parts(witness)

    def __repr__(self) -> str:
        status = self.answer.status if self.answer else "not asked"
        return f"claim_asker({self.controls['claim'].value}, {self.controls['revision'].value}, {status})"


def witness_parts(witness: Witness) -> Iterator[Html]:
    """Yield the state, its codes decoded, and where its steps part from those of a kernel that keeps the claim."""
    yield element("p", "The smallest state in which it is false: ", code(str(witness)))
    for text in witness.codes():
        yield element("p", text)
    runs = [step_lines(witness.steps(each)) for each in (None, witness.other)]
    rows = list(only_changes(compared(*runs)))
    yield diff_table(rows, witness.revision.name, witness.other.name, "the steps in this state")
