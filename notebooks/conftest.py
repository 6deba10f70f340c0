# SPDX-License-Identifier: GPL-2.0-only
"""Let nbval start its kernels one after another, and compare figures too: by digest, once their notes are gone."""

import nbval.kernel
from nbval.plugin import IPyNbCell

from tools.notebooks import FIGURES, digest_figures, kernel_start

nbval.kernel.start_new_kernel = kernel_start()(nbval.kernel.start_new_kernel)

compare_outputs = IPyNbCell.compare_outputs


def compare_figures_too(cell, test, ref, skip_compare=None):
    skipped = [kind for kind in skip_compare or cell.parent.skip_compare if kind not in FIGURES]
    return compare_outputs(cell, digest_figures(test), digest_figures(ref), skipped)


IPyNbCell.compare_outputs = compare_figures_too
