# SPDX-License-Identifier: Apache-2.0
"""knn_graph's filter on tensor cores, on the host (see test_cuda_emulation.py).

The emulation's matrix unit sums exactly and truncates, once for each product of 16 terms; rows
start in lists of 16 columns, and queues hold 80 pairs, so that small shapes overflow them.
"""

from __future__ import annotations

import knn_checks as checks
import pytest
import torch

KINDS = [
    (200, 24, 6, metric, checks.DTYPES[(i + j) % 3], kind)
    for i, metric in enumerate(checks.METRICS)
    for j, kind in enumerate(checks.KINDS)
]


@pytest.fixture(params=["ascending", "descending"])
def ops(request, emulation):
    """Threads run in ascending or descending order between barriers."""
    emulation.emulation_reverse(int(request.param == "descending"))
    return torch.ops.fcl_emulated


@pytest.mark.parametrize("case", checks.CASES, ids=checks.case_name)
def test_same_bits_as_simt(case, emulation):
    """In one of the two orders each."""
    emulation.emulation_reverse(checks.CASES.index(case) % 2)
    checks.check_case(torch.ops.fcl_emulated, case)


@pytest.mark.parametrize("case", KINDS, ids=checks.case_name)
def test_kinds_of_rows(case, emulation):
    emulation.emulation_reverse(KINDS.index(case) % 2)
    checks.check_case(torch.ops.fcl_emulated, case)


@pytest.fixture
def capability(request, emulation):
    """The device is of this major compute capability for a test."""
    emulation.emulation_capability(request.param)
    yield
    emulation.emulation_capability(8)


@pytest.mark.parametrize("dim", [128, 200, 256, 300])
@pytest.mark.parametrize("capability", [8, 9], indirect=True)
@pytest.mark.usefixtures("capability")
def test_rows_stay_in_shared_memory_or_stream(dim, ops):
    """Two panels of 64 columns stay, on Hopper four."""
    checks.check_case(ops, (90, dim, 3, "l2", torch.float32, "clustered"))


@pytest.mark.parametrize("dim", [16, 20])
def test_products_that_underflow_or_nearly_overflow(dim, emulation):
    emulation.emulation_reverse(int(dim == 20))
    checks.check_extremes(torch.ops.fcl_emulated, dim)


@pytest.mark.parametrize("dim", [16, 20, 32, 48])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_signs_of_zeros(metric, dim, emulation):
    emulation.emulation_reverse(int(metric == "l2"))
    checks.check_signed_zeros(torch.ops.fcl_emulated, dim, metric)


@pytest.mark.parametrize("metric", checks.METRICS)
def test_ever_better_and_ever_worse_candidates(metric, emulation):
    emulation.emulation_reverse(checks.METRICS.index(metric) % 2)
    checks.check_ascending(torch.ops.fcl_emulated, metric)


def _launches(ops, emulation, path, features, k=4):
    before = emulation.emulation_launches()
    checks.search(ops, path, features, k, "cosine")
    return emulation.emulation_launches() - before


def test_the_filter_takes_what_it_can(ops, emulation):
    features = checks.features_of("random", 100, 9, torch.float32)
    assert _launches(ops, emulation, "simt", features) == 2
    assert _launches(ops, emulation, "mma", features) == 4
    # Float64, and rows that fill their lists before a filter has anything to do.
    assert _launches(ops, emulation, "mma", features.double()) == 2
    assert _launches(ops, emulation, "mma", features[:16]) == 2
    assert _launches(ops, emulation, "mma", features[:17]) == 4


@pytest.mark.parametrize("capability", [7], indirect=True)
@pytest.mark.usefixtures("capability")
def test_devices_without_such_tensor_cores_are_refused(ops):
    features = checks.features_of("random", 100, 9, torch.float32)
    with pytest.raises(RuntimeError, match=r"capability 7\.0.*has no such kernels"):
        checks.search(ops, "mma", features, 4, "cosine")


def test_the_filter_is_the_default_once_verified(ops, emulation):
    features = checks.features_of("random", 100, 9, torch.float32)
    assert _launches(ops, emulation, "", features) == 2
    assert not emulation.fcl_cuda_set_verified(b"knn_graph", b"gather", True)
    assert emulation.fcl_cuda_set_verified(b"knn_graph", b"mma", True)
    try:
        assert _launches(ops, emulation, "", features) == 4
    finally:
        emulation.fcl_cuda_set_verified(b"knn_graph", b"mma", False)


@pytest.mark.parametrize("metric", checks.METRICS)
@pytest.mark.parametrize("gap", [0.02, -0.02])
def test_only_what_can_matter_is_summed(gap, metric, emulation):
    """All rows are more like the first ones than like each other; or a little less."""
    # In directions of their own but for one: products are 0.6 with the first rows, 0.6 - gap with
    # others.
    common = torch.full((150, 1), (0.6 - gap) ** 0.5, dtype=torch.float64)
    common[:16] = 0.6 / common[:16]
    features = torch.cat([common, (1 - common.square()).sqrt() * torch.eye(150)], 1)
    before = emulation.emulation_atomics()
    checks.search(torch.ops.fcl_emulated, "mma", features.float(), 4, metric)
    pushed = emulation.emulation_atomics() - before
    if gap > 0:
        assert pushed == 0
    else:
        assert pushed > 150 * 4


def test_ends_of_lists_rise_as_columns_are_met(ops, emulation):
    """Zero rows but for ten that are alike, and five in the first tile that they are more like."""
    alike = torch.tensor([0, 1, 2, 3, 4, 40, 41, 150, 151, 152])
    hubs = torch.arange(20, 25)
    features = torch.zeros(200, 16)
    features[alike, 0], features[hubs, 0] = 0.58**0.5, 0.6 / 0.58**0.5
    for place, row in enumerate(torch.cat([alike, hubs])):
        features[row, place + 1] = (1 - features[row, 0] ** 2) ** 0.5
    before = emulation.emulation_atomics()
    checks.search(ops, "mma", features, 4, "ip")
    pushed = emulation.emulation_atomics() - before
    # Lists of five alike rows or four are full. In the first tile they let in the hubs and two more
    # rows alike (no row itself). Behind it only the second block, where too few came to sum them,
    # lets in the rows of its own.
    assert pushed == (10 * 7 - 2 + 5 * 6) + 3 * 2


def test_bad_features_are_device_assertions(ops):
    features = torch.ones(40, 3)
    features[30, 1] = torch.nan
    with pytest.raises(RuntimeError, match=r"device-side assert.*features are not finite"):
        checks.search(ops, "mma", features, 2, "cosine")
    features[30, 1] = 1e19
    with pytest.raises(RuntimeError, match=r"device-side assert.*squared norms.*overflow"):
        checks.search(ops, "mma", features, 2, "ip")
