"""Reads what a compiler made of a Triton kernel: registers, spills, shared memory, tensor-core and load instructions.

Counts come from the binary itself through the `cuobjdump` inside triton's wheel (NVIDIA), or from the assembly (AMD).
"""

from __future__ import annotations

import collections
import dataclasses
import re
import subprocess
from collections.abc import Iterable

import triton

from accel.profiling.pretend_gpu import SHARED_LIMIT, Compiled

# "/*0150*/  @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;" -> address, opcode, operands
_SASS = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)\s*([^;]*);", re.MULTILINE)
_AMD = re.compile(r"^\s+([a-z]\w+)\b", re.MULTILINE)
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "U8": 1, "S8": 1, "S16": 2}
_AMD_WIDTHS = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "byte": 1}
_AMD_WIDTHS |= {sign + name: _AMD_WIDTHS[name] for name in ("short", "byte") for sign in "us"}
_LOADS = ("LDG", "LDGSTS", "LD")
# Per multiprocessor: 32-bit registers, shared bytes, warps, blocks (CUDA programming guide, table of capabilities).
_LIMITS = {"sm80": (65536, 167_936, 64, 32), "sm90": (65536, 233_472, 64, 32), "sm100": (65536, 233_472, 64, 32)}
# gfx942: registers of one SIMD lane (vector and accumulation together) and waves per SIMD; 4 SIMDs in a compute unit.
_AMD_LANE_REGISTERS, _AMD_WAVES = 512, 8


@dataclasses.dataclass(frozen=True)
class Code:
    """Facts about one compiled kernel.

    Attributes:
        registers: per thread (on gfx942 vector plus accumulation registers).
        spills: spilled bytes on NVIDIA stacks or registers on gfx942; 0 is the only good number.
        shared: bytes of shared memory per block.
        tensor_ops: tensor-core opcode -> count, in the whole kernel.
        loads, stores: bytes per thread -> instructions that read or write global memory at that width (copies straight
            to shared memory are loads).
        blocks: blocks that fit one multiprocessor together.
        loop: opcodes of the innermost loop with tensor-core instructions; empty where it was unrolled, and on AMD.
        loop_loads: `loads` of that loop alone.
    """

    registers: int
    spills: int
    shared: int
    warps: int
    tensor_ops: dict[str, int]
    loads: dict[int, int]
    stores: dict[int, int]
    blocks: int
    loop: tuple[str, ...]
    loop_loads: dict[int, int]

    @property
    def tensor_flop(self) -> int:
        """Floating-point operations of the loop's tensor-core instructions, for one block and iteration."""
        return sum(_operations(op, self.warps) for op in self.loop)


def read(kernel: Compiled) -> Code:
    """The facts of one kernel from `pretend_gpu`."""
    return _read_amd(kernel) if kernel.target.startswith("gfx") else _read_nvidia(kernel)


def _read_nvidia(kernel: Compiled) -> Code:
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "-sass", str(kernel.files["cubin"])]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    instructions = [(int(a, 16), op, rest) for a, op, rest in _SASS.findall(text)]
    opcodes = [op for _, op, _ in instructions]
    spilling = sum(op.startswith(("LDL", "STL")) for op in opcodes)
    warps, shared = kernel.metadata["num_warps"], kernel.metadata["shared"]
    loop = _matrix_loop(instructions)
    return Code(
        registers=numbers["REG"],
        spills=numbers["STACK"] + numbers["LOCAL"] + spilling,
        shared=shared,
        warps=warps,
        tensor_ops=dict(collections.Counter(op for op in opcodes if _is_tensor(op))),
        loads=_widths(opcodes, _LOADS),
        stores=_widths(opcodes, ("STG", "ST")),
        blocks=_nvidia_blocks(kernel.target, numbers["REG"], warps, shared),
        loop=loop,
        loop_loads=_widths(loop, _LOADS),
    )


def _read_amd(kernel: Compiled) -> Code:
    text = kernel.files["amdgcn"].read_text()
    found = {name: int(value) for name, value in re.findall(r"\.(\w+_(?:count|size)):\s+(\d+)", text)}
    opcodes = _AMD.findall(text)
    warps, shared = kernel.metadata["num_warps"], kernel.metadata["shared"]
    registers = found["vgpr_count"]  # on gfx90a and later this counts the accumulation registers too
    waves = min(_AMD_WAVES, _AMD_LANE_REGISTERS // max(registers, 1))
    by_shared = SHARED_LIMIT[kernel.target] // shared if shared else waves * 4
    return Code(
        registers=registers,
        spills=found["vgpr_spill_count"] + found["sgpr_spill_count"] + found["private_segment_fixed_size"],
        shared=shared,
        warps=warps,
        tensor_ops=dict(collections.Counter(op for op in opcodes if op.startswith("v_mfma"))),
        loads=_amd_widths(opcodes, ("buffer_load", "global_load")),
        stores=_amd_widths(opcodes, ("buffer_store", "global_store")),
        blocks=min(waves * 4 // warps, by_shared),
        loop=(),
        loop_loads={},
    )


def _is_tensor(op: str) -> bool:
    return op.split(".")[0].endswith("MMA") and not op.startswith(("FFMA", "DFMA", "HFMA"))


def _widths(opcodes: Iterable[str], names: tuple[str, ...]) -> dict[int, int]:
    found: collections.Counter[int] = collections.Counter()
    for op in opcodes:
        name, *parts = op.split(".")
        if name in names:
            found[next((_WIDTHS[part] for part in parts if part in _WIDTHS), 4)] += 1
    return dict(found)


def _amd_widths(opcodes: list[str], names: tuple[str, ...]) -> dict[int, int]:
    found: collections.Counter[int] = collections.Counter()
    for op in opcodes:
        if op.startswith(names):
            found[_AMD_WIDTHS[op.split("_")[2]]] += 1  # global_load_dwordx4, buffer_store_short_d16_hi
    return dict(found)


def _matrix_loop(instructions: list[tuple[int, str, str]]) -> tuple[str, ...]:
    """Opcodes between a backward branch and its aim: the shortest such stretch with a tensor-core instruction."""
    loops = []
    for address, op, operands in instructions:
        aim = re.search(r"0x([0-9a-f]+)", operands)
        if op.startswith("BRA") and aim and int(aim[1], 16) < address:
            body = tuple(o for a, o, _ in instructions if int(aim[1], 16) <= a <= address)
            if any(_is_tensor(o) for o in body):
                loops.append(body)
    return min(loops, key=len, default=())


def _nvidia_blocks(target: str, registers: int, warps: int, shared: int) -> int:
    all_registers, all_shared, all_warps, all_blocks = _LIMITS[target]
    per_warp = -(-registers * 32 // 256) * 256  # handed out in units of 256
    reserved = 1024  # bytes of shared memory that the system keeps per block
    return min(all_registers // per_warp // warps, all_shared // (shared + reserved), all_warps // warps, all_blocks)


def _operations(op: str, warps: int) -> int:
    """2 x multiply-accumulates of one tensor-core instruction, of all warps of a block together."""
    if op.startswith("HGMMA"):  # HGMMA.64x128x16.F32: one per group of 4 warps
        m, n, k = map(int, re.search(r"(\d+)x(\d+)x(\d+)", op).groups())
        return 2 * m * n * k * warps // 4
    if op.startswith("HMMA"):  # HMMA.16816.F32: m16 n8 k16, one per warp
        return 2 * 16 * 8 * {"16816": 16, "1688": 8, "1684": 4}[op.split(".")[1]] * warps
    return 0
