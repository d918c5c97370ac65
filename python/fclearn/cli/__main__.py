# SPDX-License-Identifier: Apache-2.0
"""``python -m fclearn.cli`` is ``fcl``."""

from __future__ import annotations

import sys

from fclearn.cli import main

if __name__ == "__main__":
    sys.exit(main())
