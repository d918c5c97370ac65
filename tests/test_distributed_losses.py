# SPDX-License-Identifier: Apache-2.0
"""Classes spread over processes: losses and gradients are those of one process."""

from __future__ import annotations

import pytest
from torchrun import TESTS, torchrun

from fclearn.distributed import row_range


@pytest.fixture(scope="module")
def checked():
    return torchrun(4, TESTS / "distributed_losses.py").stdout.splitlines()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "check",
    [
        "compat_loss",
        "arcface_beside_its_class",
        "small_losses_keep_their_digits",
        "terms",
        "a_shared_classifier_stays_whole",
        "gathered_rows",
        "nearest_class",
        "bad_input",
        "refused_derivatives",
        "second_derivatives_of_what_is_linear",
    ],
)
def test_equal_to_one_process(checked, check, size):
    assert f"check_{check} {size}" in checked


@pytest.mark.parametrize(("num_rows", "size"), [(0, 3), (5, 4), (7, 3), (12, 4), (3, 8)])
def test_row_ranges_are_the_chunks_of_torch(num_rows, size):
    import torch

    ranges = [row_range(num_rows, rank, size) for rank in range(size)]
    chunks = [list(part) for part in torch.arange(num_rows).chunk(size)] if num_rows else []
    chunks += [[]] * (size - len(chunks))
    assert [list(range(*one)) for one in ranges] == chunks
