# SPDX-License-Identifier: GPL-2.0-only
"""Run the path: watch one fault, or tables of faults."""
