# SPDX-License-Identifier: Apache-2.0
"""Conditions on the numbers of a compatibility report, for use in pipelines."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import typer

from fclearn.cli.console import emit, say
from fclearn.wording import nearest

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
#: Where numbers lie that are no shares; all others lie in [0, 1]. Ratios of gains have no bounds,
#: and differences of shares may be negative.
_RANGES = {
    **dict.fromkeys(("update_gain", "gain_share", "share_of_ideal"), (-math.inf, math.inf)),
    **dict.fromkeys(
        ("self_test_tax", "area_gain", "backward_compatibility", "forward_compatibility"),
        (-1.0, 1.0),
    ),
}
#: For the help of every verb with gates, beside its option.
GATE_HELP = "Exit with 1 unless it holds; on fractions: 5 % is 0.05. May be given again."
_GATE = re.compile(r"\s*([^<>=\s]+)\s*(>=|<=|>|<)\s*([^<>=\s]+)\s*")


@dataclass(frozen=True)
class Gate:
    """``left comparison right``, as in ``update_gain >= 0.2``.

    Attributes:
        text: As given.
        left: Name of a number.
        comparison: ``>=``, ``<=``, ``>`` or ``<``.
        right: A number, or the name of one.
    """

    text: str
    left: str
    comparison: str
    right: str | float

    @classmethod
    def parse(cls, text: str, names: Mapping[str, str]) -> Gate:
        """Read a gate.

        Args:
            text: As given.
            names: Names of numbers, each with the option it would need but lacks, or ``""``.

        Raises:
            ValueError: Not a gate, an unknown name (the nearest is suggested), one that cannot
                have a value, or a number that no value reaches, such as a percentage.

        Example:
            >>> gate = Gate.parse("new.map > old.map", {"old.map": "", "new.map": ""})
            >>> gate.passes({"old.map": 0.5, "new.map": 0.6})
            True
        """
        match = _GATE.fullmatch(text)
        if match is None:
            raise ValueError(
                f"--gate: expected NAME>=NUMBER (or <=, >, <), as in update_gain>=0.2, got {text!r}"
            )
        left, comparison, right = match.groups()
        if _is_number(right):
            _check_name(text, left, names)
            _check_threshold(text, left, float(right))
            return cls(text, left, comparison, float(right))
        for name in (left, right):
            _check_name(text, name, names)
        return cls(text, left, comparison, right)

    def passes(self, numbers: Mapping[str, float | None]) -> bool:
        """Whether the condition holds; never where a number has no value.

        Args:
            numbers: Value by name; None where there is none, as for the update gain over an
                independent model that is no better than the old one.
        """
        left = numbers[self.left]
        right = numbers[self.right] if isinstance(self.right, str) else self.right
        if left is None or right is None:
            return False
        return _COMPARISONS[self.comparison](left, right)


def judge_gates(
    gates: Sequence[Gate], numbers: Mapping[str, float | None]
) -> list[dict[str, object]]:
    """Say for each gate whether it holds, and return that for JSON.

    Args:
        gates: To be judged.
        numbers: Value by name.
    """
    outcomes: list[dict[str, object]] = []
    for gate in gates:
        passed = gate.passes(numbers)
        value = numbers[gate.left]
        outcomes.append({"gate": gate.text, "value": value, "passed": passed})
        text = "undefined" if value is None else f"{value:.4f}"
        say(f"gate {'passed' if passed else 'FAILED'}: {gate.text} ({gate.left} is {text})")
    return outcomes


def finish(
    result: Mapping[str, object],
    gates: Sequence[Gate],
    numbers: Mapping[str, float | None],
    *,
    json: bool,
) -> None:
    """Judge the gates and print JSON, if asked for.

    Args:
        result: For JSON; the outcomes of the gates are added.
        gates: To be judged.
        numbers: As `judge_gates`.
        json: Whether to print.

    Raises:
        typer.Exit: With 1, if a gate failed.
    """
    outcomes = judge_gates(gates, numbers)
    passed = all(outcome["passed"] for outcome in outcomes)
    if json:
        emit({**result, "gates": outcomes, "passed": passed})
    if not passed:
        raise typer.Exit(1)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_name(text: str, name: str, names: Mapping[str, str]) -> None:
    if name not in names:
        raise ValueError(f"--gate {text!r}: unknown name {name!r}; {nearest(name, names)}")
    if names[name]:
        raise ValueError(f"--gate {text!r}: {name} needs {names[name]}")


def _check_threshold(text: str, name: str, threshold: float) -> None:
    """Refuse a threshold that says nothing, as every value is on one side of it."""
    low, high = _RANGES.get(name, (0.0, 1.0))
    if not low <= threshold <= high:
        raise ValueError(
            f"--gate {text!r}: {name} is always in [{low:g}, {high:g}], got {threshold:g}; gates "
            "are on fractions: 5 % is 0.05"
        )
