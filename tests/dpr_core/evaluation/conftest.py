import pytest

from tests.loopback import Loopback, judging, longer
from tests.loopback_batches import Batches


@pytest.fixture
def batches(loopback: Loopback) -> Batches:
    """An endpoint with a Batch API whose judge prefers the longer answer."""
    loopback.answer = judging(longer)
    return Batches(loopback)
