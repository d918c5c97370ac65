# SPDX-License-Identifier: Apache-2.0
"""The command ``fcl``.

Results go to stdout as JSON with ``--json``; everything for people goes to stderr. Exit codes: 0
done, 1 a gate failed, 2 bad input or usage, 70 a bug in fcl, 130 interrupted.

Command modules import torch inside their functions: ``fcl --help`` must not wait for it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

import typer

from fclearn.cli.adapt import adapt, export
from fclearn.cli.bench_chain import bench_chain
from fclearn.cli.bench_methods import bench_methods
from fclearn.cli.console import complain, one_line, say, unwrapped
from fclearn.cli.demo import demo
from fclearn.cli.doctor import doctor
from fclearn.cli.embed import embed
from fclearn.cli.evaluate import evaluate
from fclearn.cli.graph import graph
from fclearn.cli.methods import methods
from fclearn.cli.plan import plan
from fclearn.cli.probe import probe
from fclearn.cli.report import report
from fclearn.cli.stores import pull, push, rollback
from fclearn.cli.train import train
from fclearn.cli.upgrade import upgrade
from fclearn.cli.walk import walk

app = typer.Typer(
    name="fcl",
    add_completion=False,
    help="Upgrade an embedding model and keep your index: train the new model so that its queries "
    "match the old gallery, from nothing but the old features.\n\n"
    "Start with: fcl demo. Each verb explains itself: fcl train --help.",
    epilog="Exit codes: 0 done, 1 a gate failed, 2 bad input or usage, 130 interrupted. "
    "FCL_DEBUG=1 shows the traceback of an error.",
)
_VERBS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "upgrade": upgrade,
    "embed": embed,
    "graph": graph,
    "walk": walk,
    "eval": evaluate,
    "probe": probe,
    "adapt": adapt,
    "export": export,
    "plan": plan,
    "pull": pull,
    "push": push,
    "rollback": rollback,
    "report": report,
    "methods": methods,
    "bench-methods": bench_methods,
    "bench-chain": bench_chain,
    "doctor": doctor,
}
for _name, _verb in _VERBS.items():
    app.command(name=_name, help=unwrapped(_verb.__doc__ or ""))(_verb)

_BAD_INPUT, _BUG, _INTERRUPTED, _PIPE_CLOSED = 2, 70, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``fcl``.

    Args:
        arguments: Those after the command's name; None: those of this process.

    Returns:
        The exit code.

    Example:
        >>> main(["train", "--learning-rat", "1"])
        2
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    try:
        # Not command.main(): it turns Ctrl-C and errors into texts of its own.
        with command.make_context("fcl", given or ["--help"]) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except KeyboardInterrupt as stop:
        kept = str(stop) or "what was finished is kept"
        say(f"fcl: interrupted: {kept}; the same command resumes")
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output, head for example, has seen enough. What is still buffered must
        # not fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except Exception as error:
        return _explain(error)
    return 0


def _explain(error: Exception) -> int:
    expected = _is_bad_input(error)
    if not expected or os.environ.get("FCL_DEBUG", "0") not in {"", "0"}:
        traceback.print_exception(error)
    complain(f"fcl: error: {one_line(error)}")
    return _BAD_INPUT if expected else _BUG


def _is_bad_input(error: Exception) -> bool:
    if isinstance(error, ValueError | TypeError | OSError | ModuleNotFoundError):
        return True
    if hasattr(error, "format_message"):  # a usage error of click, or of typer's copy of it
        return True
    training = sys.modules.get("fclearn.training")
    if training is not None and isinstance(error, training.DivergenceError):
        return True
    # What a kernel's own checks refuse starts with the op's name.
    return isinstance(error, RuntimeError) and str(error).startswith("fcl::")
