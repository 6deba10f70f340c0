# SPDX-License-Identifier: GPL-2.0-only
"""The patch: reading it, its ledger, and its steps in Python."""
