# SPDX-License-Identifier: GPL-2.0-only
"""A guest over time: its attributes, slots and memory, and the exits it makes."""
