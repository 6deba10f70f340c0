# SPDX-License-Identifier: GPL-2.0-only
"""Where the data tables are."""

from pathlib import Path


def data_dir() -> Path:
    """Return the folder of the data tables: the installed package's own, or a checkout's `data/`."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_data"
    return installed if installed.is_dir() else package.parent / "data"
