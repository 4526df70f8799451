import pytest

from dpr_core.planning.architecture import architecture_from_config
from perf.sizes import END, configuration, ragged, response_lengths


def test_smollm2_has_the_shape_of_the_model_that_it_stands_for() -> None:
    found = architecture_from_config(configuration("smollm2"))
    assert (found.vocabulary, found.width, found.heads, found.key_value_heads) == (49_152, 576, 9, 3)
    layers = found.layers * found.layer_matrices
    assert layers + found.head == pytest.approx(134.5e6, rel=1e-3), "SmolLM2-135M, but for its norms"
    assert found.tied


def test_only_the_last_token_ends_a_response() -> None:
    sequences = ragged(50, "toy")
    assert response_lengths(sequences) == [s.response.index(END) + 1 for s in sequences]
    assert not any(END in s.prompt for s in sequences)
