"""Tiny networks in float64, whose layers do what the traps need: in-place ReLU, batch norm, pooling or not.

And what shows whether a loader runs code that it finds in a file.
"""

import pytest
import torch
from torch import nn

N_CLASSES = 6
#: Files whose tests run whole pipelines for minutes: begun first, so that no worker ends with one of them alone.
LONGEST = ("test_paper.py", "test_stages.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


class Tiny(nn.Module):
    """Two convolutions; a head that pools first (gradient constant over the last map), or not, for 16 x 16 images."""

    def __init__(self, pooled: bool):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 10, 3, padding=1),
            nn.BatchNorm2d(10),
            nn.ReLU(inplace=True),
        )
        self.pool = nn.AdaptiveAvgPool2d(1) if pooled else nn.Identity()
        self.head = nn.Linear(10 if pooled else 10 * 8 * 8, N_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.features(images)).flatten(1))


def tiny(pooled: bool) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = Tiny(pooled).double().eval().requires_grad_(False)
        for name, tensor in network.state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.2, 0.5)
            elif tensor.is_floating_point():
                tensor.normal_(0, 0.5 if pooled or "head" not in name else 0.1)
    return network


@pytest.fixture
def pooled():
    return tiny(pooled=True)


@pytest.fixture
def flat():
    return tiny(pooled=False)


@pytest.fixture(params=["pooled", "flat"])
def network(request):
    return tiny(pooled=request.param == "pooled")


@pytest.fixture
def images():
    """Four images in [0, 1]; some pixels lie at the range's ends."""
    noise = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return (1.2 * noise - 0.1).clamp(0, 1)


@pytest.fixture
def targets():
    return torch.tensor([2, 0, 5, 3])


class Trap:
    """What makes a file when it is unpickled, and says whether it did."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (self.path.touch, ())

    def has_sprung(self):
        return self.path.exists()


@pytest.fixture
def trap(tmp_path):
    return Trap(tmp_path / "sprung")
