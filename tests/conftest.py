"""What all tests share: the devices to run on, and one thread count, so that results repeat."""

import pytest
import torch

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
