"""A torch that has other private names than the known ones, or another CUDA: said where it matters, and only there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sacfast.ops import _private

ROOT = Path(__file__).parents[2]

# Nothing private is found any more. What torch itself can do without is removed in earnest.
MOVED = """
import pkgutil
import torch
import torch._functorch.autograd_function
from torch.func import vmap

def find(place):
    raise AttributeError(place)

pkgutil.resolve_name = find
del torch.autograd.function._SingleLevelFunction
del torch._functorch.autograd_function.enable_single_level_autograd_function
from sacfast import _ext, ops

ones, x = torch.ones(4, 3), torch.ones(4, 3, requires_grad=True)

@torch.inference_mode()
def act():
    ops.tanh_gaussian_log_prob(*torch.ones(3, 4, 3).unbind())

calls = {
    "rsample": lambda: ops.tanh_gaussian_rsample(x, ones)[1].sum().backward(),
    "log_prob": lambda: ops.tanh_gaussian_log_prob(ones, x, ones).sum().backward(),
    "twin_q": lambda: ops.twin_q_target(*ones.new_ones(5, 4), 0.2, 0.99),
    "polyak": lambda: ops.polyak_update_([ones.clone()], [ones], 0.5),
    "sampling under vmap": lambda: vmap(lambda y: ops.tanh_gaussian_rsample(y, ones), randomness="same")(ones[None]),
    "cross-entropy": lambda: ops.categorical_cross_entropy(x, ones),
    "quantile": lambda: ops.quantile_huber_loss(x, ones),
    "Adam": lambda: ops.adam_polyak_(*([ones.clone()] for _ in range(5)), step=1, lr=0.1),
    "acting": act,
}
print(_ext.info()["autograd"])
for name, call in calls.items():
    try:
        call()
        print(f"{name}: done")
    except ImportError as error:
        print(f"{name}: {error}")
"""
NEEDED = re.escape(f"which this call needs: run `pip install '{_private.KNOWN_TORCH}'`, or upgrade sacfast")

NO_CUDA_KERNELS = """
import torch
torch.version.cuda = "12.8"
from sacfast import _ext, ops

cuda, ones = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), torch.ones(4)
print(_ext.info()["autograd"], _ext.info()["cuda_built"], _ext.cuda_reason(), sep="\\n")
for op, arguments in {
    torch.ops.sacfast.polyak_update_.default: ([ones.clone()], [ones], 0.5),
    torch.ops.sacfast.tanh_gaussian_rsample.default: (ones, ones, None, None, None, "none", 0, 1, None),
}.items():
    op(*arguments)
    try:
        op.redispatch(cuda, *arguments)  # as a call with CUDA tensors ends
    except NotImplementedError as error:
        print(error)
"""


def lines_of(script: str, autograd: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SACFAST_AUTOGRAD": autograd}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("autograd", ["", "python"])
def test_a_torch_that_moves_private_names_is_named_where_they_are_needed(autograd: str) -> None:
    kind, *lines = lines_of(MOVED, autograd)
    found = dict(line.split(": ", maxsplit=1) for line in lines)
    done = set(found) - {"sampling under vmap"} if kind == "C++" else {"acting"}
    assert {name for name, answer in found.items() if answer == "done"} == done
    for name, answer in found.items():
        if name not in done:
            assert re.fullmatch(
                rf"sacfast: torch {re.escape(torch.__version__)} has no torch\.\S+, {NEEDED}", answer
            ), name
    if kind == "Python":
        assert ".enable_single_level_autograd_function" in found["cross-entropy"]


def test_each_private_name_is_there_and_needed() -> None:
    users = [path.read_text() for path in (ROOT / "sacfast" / "ops").glob("*.py")]
    for name in _private.PLACES:
        assert getattr(_private, name) is not None
        assert any(f"_private.{name}" in text for text in users), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = _private.nothing


def test_private_names_of_torch_stand_in_one_place() -> None:
    """`_current_level` is asked for in a way that it may be missing; `_ops` is imported for type checkers alone."""
    private = re.compile(
        r"torch(?:\.\w+)*\._[a-zA-Z]\w*|from torch[.\w]* import .*\b_\w+|(?<!_private)\._schema|_opname"
    )
    allowed = {"_private.py": None, "_library.py": {"torch._ops"}}
    for path in (ROOT / "sacfast" / "ops").glob("*.py"):
        if (names := allowed.get(path.name, set())) is not None:
            assert set(private.findall(path.read_text())) == names, path.name


def test_a_torch_of_another_cuda_is_named_in_the_call() -> None:
    for autograd in ("", "python"):
        kind, built, reason, *refusals = lines_of(NO_CUDA_KERNELS, autograd)
        assert built == "False"
        assert kind == "Python" or autograd == ""
        assert "built without CUDA" in reason or re.search(r"install a torch for CUDA \d+", reason)
        assert refusals == [f"expected tensors on the CPU, got tensors on CUDA: {reason}"] * 2
