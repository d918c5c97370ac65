# SPDX-License-Identifier: Apache-2.0
"""Methods of your own, from the modules that the environment names."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from fclearn.cli.console import one_line


def load_own_methods() -> None:
    """Import the modules in ``FCL_METHODS``, by commas; they call `fclearn.methods.register`.

    They are found as any module is, last in the working directory, where the script ``fcl`` would
    not look by itself.

    Raises:
        ValueError: A module that is not found, or fails when it is imported.
    """
    names = [name.strip() for name in os.environ.get("FCL_METHODS", "").split(",")]
    names = [name for name in names if name]
    here = str(Path.cwd())
    if names and here not in sys.path:
        sys.path.append(here)
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever the user's module raises
            what = f"{type(error).__name__}: {one_line(error)}"
            raise ValueError(f"FCL_METHODS: module {name!r} cannot be imported: {what}") from error
