# SPDX-License-Identifier: GPL-2.0-only
"""What every other module may use: errors, places of files."""
