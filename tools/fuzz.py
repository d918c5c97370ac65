# SPDX-License-Identifier: Apache-2.0
"""Feeds damaged files to every reader for a while; keeps each one that got a wrong answer.

    python tools/fuzz.py --seconds 600                 # all readers in turn
    python tools/fuzz.py --seconds 60 --only graph,config --out build/fuzz

Files, damage and what counts as a wrong answer: ``tests/fuzz_readers.py``, which CI runs briefly. A
reader that crashes the process ends it: the file it read is then still in ``--out`` as
``current-*``.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fuzz_readers import TARGETS, answer, little_memory, mutate  # noqa: E402

_ROUND_SECONDS = 2.0


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="default: another each time")
    parser.add_argument("--only", default=",".join(TARGETS), help="names, by commas")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "fuzz")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    seed = random.SystemRandom().randint(0, 2**31) if arguments.seed is None else arguments.seed
    rng = random.Random(seed)
    names = arguments.only.split(",")
    tried, wrong = dict.fromkeys(names, 0), {}
    end = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory() as folder, little_memory():
        files = {}
        for name in names:
            Path(folder, name).mkdir()
            files[name] = TARGETS[name].make(Path(folder, name))
        whole = {name: file.read_bytes() for name, file in files.items()}
        while time.monotonic() < end:
            for name in names:
                turn = min(time.monotonic() + _ROUND_SECONDS, end)
                while time.monotonic() < turn:
                    damaged = mutate(whole[name], rng)
                    files[name].write_bytes(damaged)
                    current = arguments.out / f"current-{name}"
                    current.write_bytes(damaged)
                    found = answer(TARGETS[name], files[name])
                    tried[name] += 1
                    if found is None:
                        continue
                    kind = re.sub(r"\d+|'[^']*'", "_", found.replace(folder, ""))[:90]
                    if (name, kind) not in wrong:
                        wrong[name, kind] = found
                        kept = arguments.out / f"{name}-{len(wrong)}"
                        kept.write_bytes(damaged)
                        print(f"{name}: {found[:300]}\n  kept as {kept}", flush=True)
    print(f"seed {seed}; files tried: {tried}; wrong answers: {len(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
