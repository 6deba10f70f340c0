# SPDX-License-Identifier: GPL-2.0-only
"""The model beside the kernel: vectors, recordings, curated cases."""
