import pytest
import torch

from perf.sizes import END, ending, ragged


@pytest.mark.parametrize("size", ["toy", "tiny", "small"])
def test_a_network_that_ends_after_sixty_tokens_draws_the_end_once_in_sixty(size: str) -> None:
    ids = torch.tensor([s.prompt[:8] for s in ragged(64, size)])
    with torch.no_grad():
        chance = ending(size)(ids).logits.softmax(-1)[..., END].mean()
    assert chance == pytest.approx(1 / 60, rel=0.2)
