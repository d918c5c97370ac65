# SPDX-License-Identifier: Apache-2.0
"""Compatibility terms inside trainings that other libraries run; one module per library.

Nothing else of fclearn imports these modules.
"""

from __future__ import annotations

from fclearn.integrations.terms import CompatTerms

__all__ = ["CompatTerms"]
