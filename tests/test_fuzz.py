# SPDX-License-Identifier: GPL-2.0-only
"""Damaged inputs and command lines of a fixed seed keep every promise; `make fuzz` tries others."""

import time

import pytest

from kvm_pf.cli import patch
from tools import fuzz


@pytest.fixture(scope="module")
def inputs():
    return fuzz.Inputs()


@pytest.mark.parametrize("first", range(0, 120, 30))
def test_every_promise_is_kept(inputs, first):
    for number in range(first, first + 30):
        arguments, printed, broken = fuzz.run(inputs, "test", number)
        assert not broken, (number, arguments, printed)


def test_a_case_is_always_the_same(inputs, monkeypatch):
    monkeypatch.setattr(fuzz, "main", lambda arguments: 0)
    one, two = ([fuzz.run(inputs, "same", n)[0][0] for n in range(20)] for _ in range(2))
    assert one == two


def stumble(args):
    raise KeyError("nothing")


def escape(args):
    with open(args.file[0], "w"):
        pass
    return 7


def hang(args):
    while True:
        time.process_time()


@pytest.mark.parametrize(
    ("command", "said"), [(stumble, "ended with 3"), (escape, "ended with 7"), (hang, "not done")]
)
def test_a_broken_promise_is_seen(inputs, monkeypatch, command, said):
    monkeypatch.setattr(patch, "run", command)
    monkeypatch.setattr(fuzz, "KINDS", (fuzz.mail,))
    monkeypatch.setattr(fuzz, "SLOW", 0.2)
    assert said in fuzz.run(inputs, "test", 1)[2]
