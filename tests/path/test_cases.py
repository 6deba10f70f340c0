# SPDX-License-Identifier: GPL-2.0-only
"""The model does what every curated case expects."""

import pytest

from kvm_pf.conformance.corpus import differences, load_corpus
from kvm_pf.run.tables import TABLES


@pytest.mark.parametrize("kind", [*TABLES, "call"])
def test_the_model_agrees_with_every_curated_case(kind):
    cases = load_corpus().cases
    chosen = cases[cases["kind"] == kind]
    assert len(chosen) > 50
    assert differences(chosen) == []
