# SPDX-License-Identifier: GPL-2.0-only
"""The patch: reading it, its ledger, and its steps in Python."""

LIMIT = 64 << 20
"""How many bytes are read at most of a file with patches, and after unpacking it."""
