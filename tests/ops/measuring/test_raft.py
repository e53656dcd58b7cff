"""RAFT by a stand-in that shows what the network is given and what is taken from it, and
torchvision's own with random weights.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.optical_flow import raft_small

from tokenflow_ops.measuring.raft import load_raft, raft_flow


@pytest.mark.parametrize(("height", "width"), [(128, 128), (130, 250), (24, 40)])
def test_frames_are_padded_to_what_the_network_takes_and_the_flow_is_cut_back(
    height: int, width: int
) -> None:
    first, second = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    given = []

    class Network(torch.nn.Module):
        """Says as its last flow the colours of what it got."""

        def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
            given.extend([first, second])
            return [first[:, :2] * torch.nan, first[:, :2] + 10 * second[:, :2]]

    flow = raft_flow(Network(), first, second)
    torch.testing.assert_close(flow, (first * 2 - 1 + 10 * (second * 2 - 1))[:2])
    for image in given:
        assert all(side % 8 == 0 and side >= 128 for side in image.shape[2:])
        assert image.shape[2] - height < 8 or image.shape[2] == 128
        assert -1 <= float(image.min()) < -0.9
        assert 0.9 < float(image.max()) <= 1
    assert torch.equal(given[0][0, :, 0, 0], first[:, 0, 0] * 2 - 1)  # borders repeated
    assert torch.equal(given[0][0, :, -1, -1], first[:, -1, -1] * 2 - 1)


def test_a_network_that_always_says_the_same_step_says_it_twelve_times_in_pixels() -> None:
    weights = raft_small(weights=None).state_dict()
    weights["update_block.flow_head.conv2.weight"].zero_()
    # It works on an eighth of the resolution.
    weights["update_block.flow_head.conv2.bias"] = torch.tensor([0.25, -0.5]) / 12 / 8
    pair = torch.rand(2, 3, 72, 136, generator=torch.Generator().manual_seed(0))
    flow = raft_flow(load_raft(weights), *pair)
    torch.testing.assert_close(
        flow, torch.tensor([0.25, -0.5])[:, None, None].expand(2, 72, 136), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    "change", [{}, {"update_block.flow_head.conv2.bias": torch.zeros(5)}, {"other": torch.zeros(1)}]
)
def test_other_weights_are_refused(change: dict[str, Tensor]) -> None:
    weights = raft_small(weights=None).state_dict() | change if change else {}
    with pytest.raises(ValueError, match="raft_large or raft_small"):
        load_raft(weights)
