# SPDX-License-Identifier: Apache-2.0
"""Sphinx's configuration: ``make docs`` writes build/docs/html."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What makes pages and figures, and where they go.
sys.path[:0] = [str(HERE.parent / "tools"), str(HERE)]

import docs_pages  # noqa: E402
import figures  # noqa: E402

docs_pages.write_pages(HERE / "generated")
figures.draw(HERE / "generated")

project = "fcl-ext"
author = "The fcl-ext authors"
copyright = author
release = importlib.metadata.version("fcl-ext")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "myst_parser"]
exclude_patterns = ["method_notes"]
html_theme = "furo"
html_title = f"fcl-ext {release}"
# A backticked word in a docstring is code; most are not names that sphinx could find.
default_role = "code"
# A base class of ours is in it; the pages are the same without it.
autodoc_mock_imports = ["pytorch_metric_learning"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Attributes of a dataclass are described by its docstring, once.
napoleon_use_ivar = True
