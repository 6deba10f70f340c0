# SPDX-License-Identifier: GPL-2.0-only
"""Let nbval start its kernels one after another, also when two workers run."""

import nbval.kernel

from tools.notebooks import kernel_start

nbval.kernel.start_new_kernel = kernel_start()(nbval.kernel.start_new_kernel)
