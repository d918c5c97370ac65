# SPDX-License-Identifier: Apache-2.0
"""The Hopper kernels with stored weights on the host machine (see test_sm90_layouts.py).

More columns than a block holds, values of their own, and the gradient to prototypes. Limits are so
small that weights come in several chunks and blocks of rows.
"""

from __future__ import annotations

import pytest
from sm90_host import APART, CAN_BUILD, LUCK, build, runner

pytestmark = pytest.mark.skipif(not CAN_BUILD, reason="needs a C++ compiler and the sources")

# Two tiles of rows, the second one not full, and classes that end within a tile.
SHAPE = {"n": 150, "d": 584, "c": 1100}
# What of it is stored at a time: all of it (one chunk, which sums split in two or more), a tile of
# classes (five chunks), of one tile of rows (two blocks).
CHUNKS = {
    "one chunk": {},
    "chunks": {"cached_kib": 700, "multiprocessors": 1},
    "chunks of two tiles": {"cached_kib": 1000},
    "blocks of rows": {"weight_kib": 200, "cached_kib": 700},
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return runner(build("stored", tmp_path_factory.mktemp("sm90")))


def _check(errors, *, float16=False, lse=2e-6):
    assert errors[0] < lse
    assert errors[1] < (6e-4 if float16 else 4e-3)  # weights are rounded to 16 bits


@pytest.mark.parametrize("luck", LUCK, ids=str)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
def test_readout(stored, chunks, luck):
    loads, products, order = luck
    _check(stored(**SHAPE, **chunks, late_loads=loads, late_products=products, order=order))


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize(
    "case",
    [
        {"exclude": 1},
        {"factors": 1, "exclude": 1},
        {"mean": 0},
        {"mean": 0, "factors": 1},
        {"nan": 1},
        {"float16": 1, "factors": 1, "exclude": 1},
        {"dv": 96, "d": 64},
        {"dv": 264, "d": 40, "factors": 1, "exclude": 1},
        {"n": 1, "c": 7},
        {"n": 270, "d": 1040},
    ],
    ids=str,
)
def test_options(stored, case, chunks):
    case = {**SHAPE, **chunks, **case}
    _check(stored(**case, late_loads=0, order=APART), float16="float16" in case)


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("steps", [12, 90])
@pytest.mark.parametrize("float16", [0, 1])
def test_references_that_move(stored, steps, float16, chunks):
    """Logits up to 60 and 450, of either sign, that rise and fall along the classes."""
    case = {**SHAPE, **chunks, "steps": steps, "float16": float16}
    _check(stored(**case, late_loads=0), float16=bool(float16), lse=steps * 1e-6)


def test_single_class_that_is_excluded(stored):
    assert stored(n=70, d=520, c=1, exclude=1, order=1) <= (1e-6, 1e-6)


GRADIENT_CHUNKS = {
    "one chunk": {},
    "chunks": {"cached_kib": 400, "multiprocessors": 1},
    "blocks of classes": {"weight_kib": 200, "multiprocessors": 1},
    "split": {"multiprocessors": 12, "flush": 256},
}


@pytest.mark.parametrize("luck", LUCK, ids=str)
@pytest.mark.parametrize("chunks", GRADIENT_CHUNKS.values(), ids=GRADIENT_CHUNKS)
def test_gradient(stored, chunks, luck):
    """To prototypes: every class sums the embeddings."""
    loads, products, order = luck
    case = {"n": 600, "d": 72, "c": 200, "gradient": 1, "exclude": 1, **chunks}
    _check(stored(**case, late_loads=loads, late_products=products, order=order))


@pytest.mark.parametrize("chunks", GRADIENT_CHUNKS.values(), ids=GRADIENT_CHUNKS)
@pytest.mark.parametrize(
    "case", [{"factors": 1, "exclude": 1}, {"accumulate": 1}, {"d": 584, "n": 300}], ids=str
)
def test_gradient_options(stored, case, chunks):
    case = {"n": 600, "d": 72, "c": 200, "gradient": 1, **chunks, **case}
    _check(stored(**case, late_loads=0, order=APART))
