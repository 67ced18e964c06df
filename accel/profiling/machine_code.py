"""Reads what a compiler made of a Triton kernel: registers, spills, shared memory, tensor-core and load instructions.

Counts come from the binary itself through the `cuobjdump` inside triton's wheel (NVIDIA), or from the assembly (AMD).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
import subprocess
from collections.abc import Iterable

import triton

from accel.profiling.pretend_gpu import SHARED_LIMIT, Compiled

# "/*0150*/  @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;" -> address, opcode, operands
_SASS = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)\s*([^;]*);", re.MULTILINE)
# "\ts_cbranch_scc1 .LBB0_1", or the label ".LBB0_1:" -> label, opcode, operands
_AMD = re.compile(r"^(?:(\.L\w+):|\t([a-z]\w+)[ \t]*([^;\n]*))", re.MULTILINE)
_BRANCHES = ("BRA", "s_branch", "s_cbranch")
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "U8": 1, "S8": 1, "S16": 2}
_AMD_WIDTHS = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "byte": 1}
_AMD_WIDTHS |= {sign + name: _AMD_WIDTHS[name] for name in ("short", "byte") for sign in "us"}
_LOADS = ("LDG", "LDGSTS", "LD", "load")
_STORES = ("STG", "ST", "store")
# Per multiprocessor: 32-bit registers, shared bytes, warps, blocks (CUDA programming guide, table of capabilities).
_LIMITS = {"sm80": (65536, 167_936, 64, 32), "sm90": (65536, 233_472, 64, 32), "sm100": (65536, 233_472, 64, 32)}
# gfx942: registers of one SIMD lane (vector and accumulation together) and waves per SIMD; 4 SIMDs in a compute unit.
_AMD_LANE_REGISTERS, _AMD_WAVES = 512, 8


@dataclasses.dataclass(frozen=True)
class Code:
    """Facts about one compiled kernel.

    Attributes:
        registers: per thread (on gfx942 vector plus accumulation registers).
        spills: bytes of stack on NVIDIA, registers and bytes of scratch on gfx942; 0 is the only good number.
        shared: bytes of shared memory per block.
        blocks: blocks that fit one multiprocessor together.
    """

    kernel: Compiled
    registers: int
    spills: int
    shared: int
    warps: int
    blocks: int

    @functools.cached_property
    def instructions(self) -> list[tuple[int, str, str]]:
        """(address, opcode, operands) of the whole kernel, disassembled when first asked for.

        AMD: an address is a number in sequence, and the label a branch leads to is replaced by it.
        """
        if self._is_amd:
            return _assembly(self.kernel.files["amdgcn"].read_text())
        return [(int(address, 16), op, rest) for address, op, rest in _SASS.findall(_cuobjdump("-sass", self.kernel))]

    @functools.cached_property
    def loop(self) -> tuple[str, ...]:
        """Opcodes of the innermost loop with tensor-core instructions; empty where it was unrolled."""
        return _matrix_loop(self.instructions)

    @property
    def issued(self) -> int:
        """Instructions of the loop that queue for issue: on NVIDIA all, on AMD those of the vector units.

        An AMD compute unit has separate pipelines for scalar, memory and matrix instructions (ROCm Compute Profiler's
        manual, pipeline descriptions).
        """
        return sum(not self._is_amd or (op.startswith("v_") and not _is_tensor(op)) for op in self.loop)

    @property
    def _is_amd(self) -> bool:
        return self.kernel.target.startswith("gfx")

    @property
    def tensor_ops(self) -> dict[str, int]:
        """Tensor-core opcode -> count, in the whole kernel."""
        return dict(collections.Counter(op for _, op, _ in self.instructions if _is_tensor(op)))

    @property
    def loads(self) -> dict[int, int]:
        """Bytes per thread -> instructions that read global memory at that width, copies to shared memory included."""
        return _widths((op for _, op, _ in self.instructions), _LOADS)

    @property
    def loop_loads(self) -> dict[int, int]:
        """`loads` of the loop alone."""
        return _widths(self.loop, _LOADS)

    @property
    def stores(self) -> dict[int, int]:
        return _widths((op for _, op, _ in self.instructions), _STORES)

    @property
    def tensor_flop(self) -> int:
        """Operations of the loop's tensor-core instructions, one block and iteration; 0 where opcodes hide the size."""
        return sum(_operations(op, self.warps) for op in self.loop)


def read(kernel: Compiled) -> Code:
    """The facts of one kernel from `pretend_gpu`."""
    warps, shared = kernel.metadata["num_warps"], kernel.metadata["shared"]
    if kernel.target.startswith("gfx"):
        text = kernel.files["amdgcn"].read_text()
        found = {name: int(value) for name, value in re.findall(r"\.(\w+_(?:count|size)):\s+(\d+)", text)}
        registers = found["vgpr_count"]  # from gfx90a on this counts the accumulation registers too
        spills = found["vgpr_spill_count"] + found["sgpr_spill_count"] + found["private_segment_fixed_size"]
        return Code(kernel, registers, spills, shared, warps, _amd_blocks(kernel.target, registers, warps, shared))
    usage = _cuobjdump("--dump-resource-usage", kernel)
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    registers, spills = found["REG"], found["STACK"] + found["LOCAL"]
    return Code(kernel, registers, spills, shared, warps, _nvidia_blocks(kernel.target, registers, warps, shared))


def _cuobjdump(option: str, kernel: Compiled) -> str:
    command = [triton.knobs.nvidia.cuobjdump.path, option, str(kernel.files["cubin"])]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _is_tensor(op: str) -> bool:
    return op.startswith("v_mfma") or (op.split(".")[0].endswith("MMA") and op[0] in "HIQU")  # not FFMA


def _widths(opcodes: Iterable[str], names: tuple[str, ...]) -> dict[int, int]:
    """LDG.E.128, or global_load_dwordx4 -> 16: how many of each."""
    found: collections.Counter[int] = collections.Counter()
    for op in opcodes:
        if op.startswith(("global_", "buffer_")):
            kind = op.split("_")
            if kind[1] in names:
                found[_AMD_WIDTHS[kind[2]]] += 1
        elif (parts := op.split("."))[0] in names:
            found[next((_WIDTHS[part] for part in parts if part in _WIDTHS), 4)] += 1
    return dict(found)


def _assembly(text: str) -> list[tuple[int, str, str]]:
    """AMD assembly as (number in sequence, opcode, operands); a label among operands becomes the number it precedes."""
    found, labels = [], {}
    for label, op, operands in _AMD.findall(text):
        if label:
            labels[label] = len(found)
        else:
            found.append((op, operands.strip()))
    return [(i, op, hex(labels[aim]) if aim in labels else aim) for i, (op, aim) in enumerate(found)]


def _matrix_loop(instructions: list[tuple[int, str, str]]) -> tuple[str, ...]:
    """Opcodes between a backward branch and its aim: the shortest such stretch with a tensor-core instruction."""
    loops = []
    for address, op, operands in instructions:
        aim = re.search(r"0x([0-9a-f]+)", operands)
        if op.startswith(_BRANCHES) and aim and int(aim[1], 16) < address:
            body = tuple(o for a, o, _ in instructions if int(aim[1], 16) <= a <= address)
            if any(_is_tensor(o) for o in body):
                loops.append(body)
    return min(loops, key=len, default=())


def _nvidia_blocks(target: str, registers: int, warps: int, shared: int) -> int:
    all_registers, all_shared, all_warps, all_blocks = _LIMITS[target]
    per_warp = -(-registers * 32 // 256) * 256  # handed out in units of 256
    reserved = 1024  # bytes of shared memory that the system keeps per block
    return min(all_registers // per_warp // warps, all_shared // (shared + reserved), all_warps // warps, all_blocks)


def _amd_blocks(target: str, registers: int, warps: int, shared: int) -> int:
    waves = 4 * min(_AMD_WAVES, _AMD_LANE_REGISTERS // max(registers, 1))
    return min(waves // warps, SHARED_LIMIT[target] // shared if shared else waves)


def _operations(op: str, warps: int) -> int:
    """2 x multiply-accumulates of one tensor-core instruction, of all warps of a block together."""
    if op.startswith("HGMMA"):  # HGMMA.64x128x16.F32: one per group of 4 warps
        m, n, k = map(int, re.search(r"(\d+)x(\d+)x(\d+)", op).groups())
        return 2 * m * n * k * warps // 4
    if op.startswith("v_mfma"):  # v_mfma_f32_32x32x8_f16: one per wave
        m, n, k = map(int, re.search(r"(\d+)x(\d+)x(\d+)", op).groups())
        return 2 * m * n * k * warps
    if op.startswith("HMMA"):  # HMMA.16816.F32: m16 n8 k16, one per warp
        return 2 * 16 * 8 * {"16816": 16, "1688": 8, "1684": 4}[op.split(".")[1]] * warps
    return 0
