# SPDX-License-Identifier: GPL-2.0-only
"""`python -m kvm_pf` is `kvm-pf`."""

from kvm_pf.cli import script

if __name__ == "__main__":
    script()
