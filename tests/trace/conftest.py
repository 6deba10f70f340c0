# SPDX-License-Identifier: GPL-2.0-only
"""What tests of traces share: the recordings that the package carries, each read once, to be looked at only."""

import functools

import pytest

from kvm_pf.common.paths import data_dir
from kvm_pf.conformance.fault_rows import fault_frame, load_faults
from kvm_pf.trace import load


@pytest.fixture(scope="session")
def recorded_faults():
    """The faults of all recordings, as the comparison with the model joins them."""
    return fault_frame(load_faults(data_dir() / "recordings" / "faults.csv.gz"))


@pytest.fixture(scope="session")
def load_once():
    """Load a trace, or give it as it was loaded."""
    return functools.cache(load)
