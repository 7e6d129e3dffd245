"""The schedule of mask annealing and its lot. (In a model: test_eomt.py; in a run: test_training.py.)"""

import itertools

import pytest
import torch

from maskformer.annealing import MaskAnnealing, masking_probability


def test_schedule_is_the_published_one() -> None:
    """COCO: 4 blocks, 12 epochs of 7391 steps; Cityscapes: 3 blocks, 107 epochs of 186 steps."""
    published = [
        (88692, [14782, 29564, 44346, 59128], [29564, 44346, 59128, 73910]),
        (19902, [3317, 8292, 13268], [6634, 11609, 16585]),
    ]
    for steps, starts, ends in published:
        blocks = len(starts)
        for block, (start, end) in enumerate(zip(starts, ends, strict=True)):
            slack = steps // 5000
            assert masking_probability(block, blocks, (start - slack) / steps) == 1
            assert (
                0.5 < masking_probability(block, blocks, (start + end) / 2 / steps) == pytest.approx(0.5**0.9, abs=2e-3)
            )
            assert masking_probability(block, blocks, (end - slack) / steps) > 0
            assert masking_probability(block, blocks, (end + slack) / steps) == 0


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5])
def test_the_first_block_is_annealed_first(blocks: int) -> None:
    table = [[masking_probability(block, blocks, step / 97) for step in range(98)] for block in range(blocks)]
    assert all(row[0] == 1 and row[-1] == 0 and row == sorted(row, reverse=True) for row in table)
    for earlier, later in itertools.pairwise(table):
        assert all(a <= b for a, b in zip(earlier, later, strict=True)) and earlier != later
    assert masking_probability(0, blocks, -1) == 1 and masking_probability(0, blocks, 2) == 0


def test_the_share_of_masked_queries_is_the_probability() -> None:
    torch.manual_seed(0)
    annealing = MaskAnnealing(2).train()
    annealing.set_progress(0.2)  # of two blocks, the first is on its way and the second still masked
    hidden = torch.zeros(100, 200, 3, dtype=torch.bool)
    spared = annealing.spare(0, hidden)
    assert torch.equal(spared.any(2), spared.all(2))  # all of a query's patches or none
    assert spared.float().mean() == pytest.approx(1 - masking_probability(0, 2, 0.2), abs=0.01)
    assert not annealing.spare(1, hidden).any()
    assert torch.equal(annealing.eval().spare(0, hidden), hidden)
