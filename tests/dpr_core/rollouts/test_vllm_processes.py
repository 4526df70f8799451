"""Several processes and one server: the first of them talks to it, and all get what it got, or fail as it did."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpr_core import distributed
from dpr_core.config.execution import ExecutionConfig
from dpr_core.config.rollouts import VllmConfig
from dpr_core.errors import DensePathError, UsageError
from dpr_core.models.checkpoints import load_model
from dpr_core.models.policy import Policy
from dpr_core.rollouts.engine import Sampling
from dpr_core.rollouts.factory import open_engine
from tests import ranks
from tests.loopback_vllm import serving

pytestmark = pytest.mark.integration

PROMPTS = [(1, 2), (3,), (4, 4, 1), (2,), (2, 2), (1,)]


def draw(folder: Path) -> None:
    distributed.state()
    policy, told = Policy(load_model(folder / "served")), []

    def save(to: Path) -> None:
        if distributed.rank() == 0:
            policy.model.save_pretrained(to)

    url = (folder / "url").read_text()
    execution, work = ExecutionConfig(), folder / f"work-{distributed.rank()}"
    with open_engine(
        VllmConfig.model_validate({"execution": {"url": url}}), policy, save, 8, execution, work
    ) as engine:
        engine.update_weights(0)
        told.append([c.response for c in engine.generate(PROMPTS, Sampling(1.0, 5, 0), 3)])
        try:
            engine.generate(PROMPTS, Sampling(1.0, 4, 0), 4)
        except DensePathError as error:
            told.append([str(error)])
    try:
        with open_engine(VllmConfig(overlap=True), policy, save, 8, execution, work):
            pass
    except UsageError as error:
        told.append([str(error)])
    (folder / f"{distributed.rank()}.json").write_text(json.dumps(told))


@pytest.mark.slow
def test_all_get_what_the_first_has_drawn(
    toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    toy(0).save_pretrained(tmp_path / "served")
    with serving(tmp_path / "served") as server:
        # Four that recognise the server, and the rollout; what comes after that is no response.
        server.change = lambda choice: choice.update(token_ids=[]) if len(server.drawn) >= 4 + len(PROMPTS) else None
        (tmp_path / "url").write_text(server.url)
        ranks.run(2, draw, tmp_path)
        assert len(server.drawn) >= 4 + len(PROMPTS)
        assert server.asked.count("load weights-0") == 1
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert len(first[0]) == len(PROMPTS)
    assert "cannot be a response" in first[1][0]
    assert "rollouts.overlap" in first[2][0]
