"""Load a build's libraries into torch and show what of them is there for CUDA; needs no GPU.

Fails where an op has a CPU kernel and no CUDA kernel, or the update has no engine for a GPU.
"""

import ctypes
import importlib.util
import sys
from pathlib import Path

import torch


def load_ops(folder: Path) -> None:
    """Load the libraries of ops that lie in a folder, as sacfast/_ext.py does."""
    suffix = "".join(torch.__version__.split(".")[:2])
    paths = {"CPU": folder / "_ops.so", "CUDA": next(folder.glob("_ops_cuda*.so"))}
    for path in (*paths.values(), folder / f"_autograd_{suffix}.so"):
        torch.ops.load_library(path)
    autograd = ctypes.CDLL(str(path))
    for device, path in paths.items():
        kernels = ctypes.CDLL(str(path))
        autograd.sacfast_bind_kernels(kernels.sacfast_kernel, kernels.sacfast_make_tensors_by, device.encode())
        kernels.sacfast_register_kernels()


def show_ops(folder: Path) -> bool:
    """Print a line for each op of the libraries; return whether all have CUDA kernels."""
    load_ops(folder)
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("sacfast::")]
    found = []
    for name in sorted(names):
        cpu, cuda = (torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in ("CPU", "CUDA"))
        if not cpu and not cuda:
            continue  # what the library says about itself works on no tensor
        print(f"  {name:45} CPU {'yes' if cpu else 'NO':4} CUDA {'yes' if cuda else 'NO'}")
        found.append(cpu and cuda)
    return bool(found) and all(found)


def show_engines(library: Path) -> bool:
    """Print a line for each engine of the update; return whether the GPU's are there."""
    spec = importlib.util.spec_from_file_location("_C", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [hasattr(module, name) for name in ("GpuEngine32", "GpuEngine64")]
    print(f"  {'the update, float32 and float64':45} CPU yes  CUDA {'yes' if all(found) else 'NO'}")
    return all(found)


def main(folder: Path) -> int:
    """Show the libraries that lie in a build folder; return 1 if something lacks CUDA."""
    print(f"{folder} in torch {torch.__version__} (CUDA {torch.version.cuda})")
    complete = show_ops(folder)
    return 0 if show_engines(next(folder.glob("_C.*.so"))) and complete else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
