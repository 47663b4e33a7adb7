"""What all tests share: the devices to run on, and one thread count, so that results repeat."""

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

torch.set_num_threads(2)

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `cuda` where the CUDA kernels cannot run, with the reason."""
    from sacfast import _ext

    reason = _ext.info()["cuda_reason"]
    if not reason:
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason=f"needs a GPU: {reason}"))


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> str:
    """Run the test on the CPU, and on CUDA where there is one."""
    return str(request.param)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tensor]:
    """2^31 + 2^21 zeros on a file with holes: only what is touched takes memory."""
    elements = 2**31 + 2**21
    path = tmp_path_factory.mktemp("sparse") / "zeros"
    with path.open("wb") as file:
        file.truncate(4 * elements)
    if shutil.disk_usage(path.parent).free < 2**26 or path.stat().st_blocks > 2**17:
        pytest.skip("needs a file system with sparse files")
    yield torch.from_file(str(path), shared=True, size=elements, dtype=torch.float32)
    path.unlink()
