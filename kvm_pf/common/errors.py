# SPDX-License-Identifier: GPL-2.0-only
"""The one exception that bad input raises."""

from kvm_pf.common.text import one_line


class InputError(ValueError):
    """Say in one sentence which value is wrong, where it stands, and what would be right.

    The sentence is one line, whatever the value is: control characters are shown, the middle of a long one left out.
    """

    def __init__(self, sentence: object) -> None:
        super().__init__(one_line(sentence, 1400))
