# SPDX-License-Identifier: Apache-2.0
"""Whether the warpgroups of a Hopper kernel stay within the registers they ask for.

``setmaxnreg`` shares a block's registers out among its warpgroups, and what a warpgroup then uses
beyond its share is undefined; the compiler counts a function that several of them call for none. So
this follows the machine code (as ``nvdisasm -c`` prints it) from every such instruction to its ends
and finds the highest register on the way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass
class Share:
    """Registers of one role: asked for, and highest used plus one."""

    kernel: str
    asked: int
    used: int


_LABEL = re.compile(r"^([.$][\w.$]+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);")
_TARGET = re.compile(r"`\(([.$][\w.$]+)\)")
_ENDS = re.compile(r"^(EXIT|RET|BRA\s+`|BRX|JMP)")


def _highest(instruction: str) -> int:
    """Highest register of an instruction; wide operands are named by their first one."""
    registers = [int(n) for n in re.findall(r"\bR(\d+)\b", instruction)]
    if product := re.search(r"HGMMA\.64x(\d+)x", instruction):
        return max([registers[0] + int(product[1]) // 2 - 1, *registers])
    width = (
        4 if ".128" in instruction else 2 if re.search(r"\.64|WIDE|\bD[A-Z]", instruction) else 1
    )
    return max((n + width - 1 if n % width == 0 else n for n in registers), default=-1)


def shares(disassembly: str) -> list[Share]:
    """Of all kernels in a disassembly that use ``setmaxnreg``."""
    found = []
    for function in re.split(r"^\.text\.", disassembly, flags=re.MULTILINE)[1:]:
        if "USETMAXREG" in function:
            found += _of_kernel(function[: function.index(":")], function)
    return found


def _of_kernel(kernel: str, function: str) -> list[Share]:
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in function.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := _INSTRUCTION.match(line):
            instructions.append(instruction[1])

    def next_of(at: int) -> list[int]:
        text = instructions[at]
        following = [labels[name] for name in _TARGET.findall(text) if name in labels]
        if _ENDS.match(text) is None and at + 1 < len(instructions):
            following.append(at + 1)
        return following

    found = []
    for start, text in enumerate(instructions):
        if (share := re.search(r"USETMAXREG.*?(0x[0-9a-f]+)", text)) is None:
            continue
        seen: set[int] = set()
        todo = [start + 1]
        while todo:
            at = todo.pop()
            if at in seen or "USETMAXREG" in instructions[at]:
                continue
            seen.add(at)
            todo += next_of(at)
        used = max((_highest(instructions[at]) for at in seen), default=-1) + 1
        found.append(Share(kernel, int(share[1], 16), used))
    return found
