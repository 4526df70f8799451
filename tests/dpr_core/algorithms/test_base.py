import pytest
import torch

from dpr_core.algorithms.base import LossInputs
from dpr_core.algorithms.dense_path_reinforce import Algorithm1
from dpr_core.config.reinforce import Algorithm1Config
from dpr_core.logprobs import TokenScores


def test_rows_of_loss_inputs_keep_what_is_not_given() -> None:
    inputs = LossInputs(advantages=torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]]))
    mini_batch = inputs.rows([0], 2)
    assert mini_batch.advantages is not None
    assert mini_batch.advantages.tolist() == [[1.0, 2.0]]
    assert mini_batch.old_log_probs is None


def test_a_loss_without_what_it_reads_fails() -> None:
    scores = TokenScores(torch.zeros(2), torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="is None"):
        Algorithm1(Algorithm1Config())(scores, LossInputs())
