# SPDX-License-Identifier: GPL-2.0-only
"""Error numbers are Linux's, whatever this runs on."""

import errno
import re
import sys

import pytest

from kvm_pf import state
from kvm_pf.common.errnos import ERRNO_NAMES
from kvm_pf.guest import memslots
from kvm_pf.revisions import get, v6_12
from kvm_pf.run.inputs import answer


def test_every_number_up_to_the_last_has_a_name_but_two():
    assert set(range(1, 134)) - set(ERRNO_NAMES) == {41, 58}
    assert len(set(ERRNO_NAMES.values())) == len(ERRNO_NAMES) == 131


@pytest.mark.skipif(
    sys.platform != "linux", reason="the names are held against this system's own, if it is Linux"
)
def test_they_are_those_of_the_c_library():
    assert {
        name: number for number, name in ERRNO_NAMES.items() if getattr(errno, name, number) != number
    } == {}


@pytest.mark.parametrize("module", [state, memslots, v6_12])
def test_they_are_those_of_the_path(module):
    own = {
        name: value
        for name, value in vars(module).items()
        if re.fullmatch(r"E[A-Z]+", name) and type(value) is int
    }
    assert own
    assert own == {name: number for number, name in ERRNO_NAMES.items() if name in own}


@pytest.mark.parametrize(
    ("value", "name"), [(-14, "-EFAULT"), (-5, "-EIO"), (-133, "-EHWPOISON"), (-41, "-41")]
)
def test_an_answer_is_named_by_it(value, name):
    assert answer(value, get("posted")) == name
