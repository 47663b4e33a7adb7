"""The ops with autograd in Python, for a torch that no library in C++ was built for: in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sacfast import _ext

ROOT = Path(__file__).parents[1]

# What the kernels alone decide is left out: formulas, the law of the noise, instruction sets, memory that is shared.
FILES = (
    *("tanh_gaussian", "twin_q", "polyak", "noise", "adam_polyak", "categorical", "moments", "quantile"),
    *("transforms", "odd_inputs"),
)
KERNELS = ("Law", "Bits", "CpuLevels", "WhereItIsDrawn", "uncorrelated", "AgainstFloat64", "Formula", "SharedMemory")
SUITE = f"""
import sys
import pytest
from sacfast import _ext
assert _ext.info()["autograd"] == "Python"
skipped = " and ".join(f"not {{each}}" for each in {KERNELS})
files = [f"tests/ops/test_{{each}}.py" for each in {FILES}]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", skipped, *files]))
"""

RESULTS = """
import hashlib
import torch
from sacfast import _ext, ops

torch.set_num_threads(1)
torch.manual_seed(3)
mean = torch.linspace(-3, 3, 102).view(6, 17).requires_grad_()
log_std = torch.linspace(-5, 1, 17).requires_grad_()
scale = torch.linspace(0.5, 2, 17)
results = []
for generator in (None, torch.Generator().manual_seed(2**64 - 3), ops.philox_state(4)):
    for _ in range(2):
        out = ops.tanh_gaussian_rsample(
            mean, log_std, None, generator, log_std_bounding="tanh", log_std_bounds=(-5, 2), action_scale=scale
        )
        results += [*out, *torch.autograd.grad(sum(each.square().sum() for each in out), (mean, log_std))]
results.append(torch.rand(3))
log_prob = ops.tanh_gaussian_log_prob(results[0].detach().clamp(-1, 1), mean, log_std)
results += [log_prob, *torch.autograd.grad(log_prob.sum(), (mean, log_std))]
columns = [mean.detach()[:, i].contiguous().requires_grad_(i > 1) for i in range(5)]
alpha = torch.tensor([0.2], requires_grad=True)
target = ops.twin_q_target(columns[0], columns[1] > 0.5, *columns[2:], alpha, 0.99)
results += [target, *torch.autograd.grad(target.square().sum(), (*columns[2:], alpha))]
average = mean.detach().clone()
version = average._version
ops.polyak_update_(average, results[0].detach(), 0.3)
results += [average, torch.tensor(average._version - version)]
with torch.autocast("cpu", torch.bfloat16):
    results.append(ops.tanh_gaussian_log_prob(*(each.detach().bfloat16() for each in (mean, mean, log_std))))
for each in results:
    print(each.dtype, tuple(each.shape), hashlib.sha256(each.detach().numpy().tobytes()).hexdigest())
print(_ext.info()["autograd"])
"""

MEMORY = """
import gc
import pathlib
import torch
from sacfast import _ext, ops

torch.set_num_threads(1)
mean, scale, state = torch.zeros(2, 3), torch.ones(3), ops.philox_state(1)
column, alpha = torch.zeros(3), torch.tensor(0.2)
targets, onlines = [mean.clone(), scale.clone()], [mean, scale]

def call(times):
    for _ in range(times):
        ops.tanh_gaussian_rsample(mean, mean, generator=state, log_std_bounding="clamp", action_scale=scale)
        ops.twin_q_target(column, column, column, column, column, alpha, 0.9)
        ops.polyak_update_(targets, onlines, 0.1)
    gc.collect()
    return 4096 * int(pathlib.Path("/proc/self/statm").read_text().split()[1])

call(2000)
before = call(2000)
print((call(40_000) - before) / 40_000)
print(_ext.info()["autograd"])
"""


def start(script: str, autograd: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SACFAST_AUTOGRAD": autograd}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_ops_pass_their_tests() -> None:
    process = start(SUITE, "python")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert " failed" not in output


@pytest.mark.skipif(_ext.autograd_library() is None, reason="no library of autograd in C++ was built for this torch")
def test_results_are_the_same_bits() -> None:
    processes = [start(RESULTS, autograd) for autograd in ("", "python")]
    in_cpp, in_python = (process.communicate(timeout=120)[0].splitlines() for process in processes)
    assert in_cpp.pop() == "C++"
    assert in_python.pop() == "Python"
    assert in_cpp == in_python
    assert len(in_cpp) == 36


@pytest.mark.parametrize(("autograd", "name"), [("", "C++"), ("python", "Python")])
def test_calls_keep_no_memory(autograd: str, name: str) -> None:
    """What the dispatcher hands over, or autograd in C++ takes, is freed: tensors, strings, lists, options."""
    if autograd == "" and _ext.autograd_library() is None:
        pytest.skip("no library of autograd in C++ was built for this torch")
    output, _ = start(MEMORY, autograd).communicate(timeout=120)
    growth, used = output.splitlines()
    assert used == name
    assert float(growth) < 12  # bytes a call: the smallest thing to forget has 16, the heap moves by some pages
