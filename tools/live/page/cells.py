# SPDX-License-Identifier: GPL-2.0-only
"""Lines of a notebook, run in the page."""

import ast


def widget(source):
    """Run the lines and return the widget that the last of them gives."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value)
    scope = {"__name__": "__main__"}
    exec(compile(tree, "<cell>", "exec"), scope)
    return eval(compile(last, "<cell>", "eval"), scope)


def uses_solver(widget):
    """Say whether a widget could do more if the solver were here."""
    if not getattr(widget, "uses_solver", False):
        return False
    from kvm_pf.proof.terms import has_solver  # at once it would take time that most pages need not wait

    return not has_solver()
