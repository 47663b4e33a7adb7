"""Load an ops library into torch and show which of its ops have CUDA kernels; needs no GPU.

Fails where an op has a CPU kernel and no CUDA kernel.
"""

import sys

import torch


def main(library: str) -> int:
    """Print a line for each op of the library; return 1 if one lacks CUDA."""
    torch.ops.load_library(library)
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("sacfast::")]
    complete = False
    print(f"{library} in torch {torch.__version__} (CUDA {torch.version.cuda})")
    for name in sorted(names):
        cpu, cuda = (torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in ("CPU", "CUDA"))
        if not cpu and not cuda:
            continue  # what the library says about itself works on no tensor
        print(f"  {name:45} CPU {'yes' if cpu else 'NO':4} CUDA {'yes' if cuda else 'NO'}")
        if not (cpu and cuda):
            return 1
        complete = True
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
