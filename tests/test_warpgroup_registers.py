# SPDX-License-Identifier: Apache-2.0
"""tools/warpgroup_registers.py follows machine code from each setmaxnreg."""

from __future__ import annotations

import pytest
from warpgroup_registers import Share, shares

# Two roles: one that gives registers back, branches and calls a function, one that takes more.
CODE = """\
.text.step_kernel:
        /*0000*/                   MOV R200, R1 ;
        /*0010*/              @P0  BRA `(.L_x_2) ;
        /*0020*/                   USETMAXREG.DEALLOC.CTAPOOL 0x18 ;
.L_x_0:
        /*0030*/                   IADD3 R{first}, R2, R3, RZ ;
        /*0040*/              @P1  BRA `(.L_x_1) ;
        /*0050*/                   CALL.REL.NOINC `($divide) ;
        /*0060*/                   BRA `(.L_x_0) ;
.L_x_1:
        /*0070*/                   EXIT ;
.L_x_2:
        /*0080*/                   USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xf0 ;
        /*0090*/                   HGMMA.64x256x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*00a0*/                   LDG.E.128 R{second}, desc[UR4][R2.64] ;
        /*00b0*/                   EXIT ;
$divide:
        /*00c0*/                   IMAD R{called}, R4, R4, RZ ;
        /*00d0*/                   RET.REL.NODEC R2 `(step_kernel) ;
.text.plain_kernel:
        /*0000*/                   MOV R250, R1 ;
"""


@pytest.mark.parametrize(
    ("first", "second", "called", "used"),
    [(5, 8, 6, (7, 152)), (23, 152, 3, (24, 156)), (5, 200, 30, (31, 204))],
)
def test_each_role_has_its_own_registers(first, second, called, used):
    code = CODE.format(first=first, second=second, called=called)
    expected = [
        Share("step_kernel", asked, most) for asked, most in zip((24, 240), used, strict=True)
    ]
    assert shares(code) == expected


def test_kernels_that_share_nothing_out_are_left_alone():
    assert shares(CODE[CODE.index(".text.plain") :]) == []
