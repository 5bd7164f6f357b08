"""The Triton kernels built for sm_80 and sm_90 without a GPU: they fit the chips and spill nothing."""

import re
import subprocess

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from covervlm.kernels import affinity_triton, greedy_triton  # noqa: E402

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that one program may have."""

REGISTER_FILE = 65536
"""Registers of one SM, on both."""

RESIDENT = {80: 216, 90: 264}
"""Programs that an A100 and an H100 surely hold, two per SM."""

GREEDY = {
    "columns": "*fp32", "allowed": "*i1", "counts": "*i64", "picks": "*i64", "covered": "*fp32", "messages": "*i64",
    "evaluations": "*i64", "weights": "*fp32", "n": "i32", "rows": "i32", "width": "i32", "item_stride": "i32",
    "column_stride": "i32", "programs": "i32",
}  # fmt: skip
SCORES = {
    "left": "*fp16", "right": "*fp16", "out": "*fp32", "left_rows": "i32", "right_rows": "i32", "depth": "i32",
    "left_item": "i32", "left_row": "i32", "right_item": "i32", "right_row": "i32", "out_item": "i32",
    "out_column": "i32", "tau": "fp32",
}  # fmt: skip
SOFTMAX = {
    "columns": "*fp32", "words": "*i64", "counts": "*i64", "n": "i32", "text_rows": "i32", "rows": "i32",
    "columns_item": "i32", "column_stride": "i32", "alpha": "fp32",
}  # fmt: skip


def resources(kernel, signature, constants, options, chip, tmp_path) -> dict[str, int]:
    """Registers per thread, bytes of stack, local and shared memory, read from the compiled cubin."""
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    printed = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", printed)}
    # What is asked for at launch is not in the cubin.
    found["SHARED"] = max(found["SHARED"], compiled.metadata.shared)
    return found


def assert_fits(used: dict[str, int], chip: int, warps: int, programs_per_sm: int) -> None:
    assert used["REG"] > 0
    assert used["STACK"] == used["LOCAL"] == 0, "registers spill"
    assert used["SHARED"] <= SHARED_LIMIT[chip]
    assert programs_per_sm * warps * 32 * used["REG"] <= REGISTER_FILE


@pytest.mark.parametrize("chip", [80, 90])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "items"), [(576, 1), (576, 5), (576, 64), (576, 500), (2880, 1), (4096, 1)])
def test_the_greedy_fits_two_programs_to_an_sm_without_spills(chip, n, items, weighted, tmp_path, record_property):
    plan = greedy_triton.plan(n, n + 8, items, RESIDENT[chip])
    constants = {**plan.constants, "COUNT": False, "WEIGHTED": weighted}
    used = resources(greedy_triton.greedy_kernel, GREEDY, constants, plan.options, chip, tmp_path)
    print(f"greedy sm_{chip} n={n} items={items} programs={plan.programs}: {used}")
    assert_fits(used, chip, plan.options["num_warps"], programs_per_sm=2)


@pytest.mark.parametrize("chip", [80, 90])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_scores_fit_without_spills(chip, dtype, symmetric, tmp_path):
    signature = SCORES | {"left": f"*{dtype}", "right": f"*{dtype}"}
    tile = affinity_triton.score_tile({"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    constants = {**tile, "BLOCK_RIGHT": 64 if symmetric else 16, "SYMMETRIC": symmetric}
    options = affinity_triton.OPTIONS
    used = resources(affinity_triton.scores_kernel, signature, constants, options, chip, tmp_path)
    print(f"scores sm_{chip} {dtype} symmetric={symmetric}: {used}")
    assert_fits(used, chip, options["num_warps"], programs_per_sm=1)


@pytest.mark.parametrize("chip", [80, 90])
def test_the_softmax_fits_without_spills(chip, tmp_path):
    options = affinity_triton.OPTIONS
    used = resources(affinity_triton.softmax_kernel, SOFTMAX, affinity_triton.SOFTMAX_TILE, options, chip, tmp_path)
    print(f"softmax sm_{chip}: {used}")
    assert_fits(used, chip, options["num_warps"], programs_per_sm=1)


@pytest.mark.parametrize(
    ("n", "items", "capacity"), [(576, 1, 216), (576, 5, 216), (2880, 3, 264), (576, 400, 216), (7, 1, 216)]
)
def test_programs_that_wait_for_one_another_never_exceed_the_chip(n, items, capacity):
    plan = greedy_triton.plan(n, n + 8, items, capacity)
    assert plan.programs == 1 or plan.programs * items <= capacity
    assert plan.programs * plan.groups * plan.together >= n
    assert plan.block * plan.blocks >= n + 8
