# SPDX-License-Identifier: GPL-2.0-only
"""The one exception that bad input raises."""


class InputError(ValueError):
    """Say in one sentence which value is wrong, where it stands, and what would be right."""
