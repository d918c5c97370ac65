# SPDX-License-Identifier: Apache-2.0
"""Maps between the old and the new space, learned after both models are trained."""

from __future__ import annotations

from fclearn.adapters.forward import ForwardMap

__all__ = ["ForwardMap"]
