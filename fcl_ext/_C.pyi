# SPDX-License-Identifier: Apache-2.0
compiler: str
torch_build_version: str
version: str

def available_cpu_isas() -> list[str]: ...
def cpu_isa() -> str: ...
