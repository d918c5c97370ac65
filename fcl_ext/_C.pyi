# SPDX-License-Identifier: Apache-2.0
compiler: str
torch_build_version: str
version: str

def cpu_isa() -> str: ...
