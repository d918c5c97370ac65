# SPDX-License-Identifier: Apache-2.0
"""Upgrades played through on real images: the demo's stages, and methods compared on them."""
