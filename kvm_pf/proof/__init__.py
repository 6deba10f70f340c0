# SPDX-License-Identifier: GPL-2.0-only
"""What is claimed of the path, asked of a solver; and who notices a mistake."""
