import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import dpr_core
from dpr_core import DenseReward, UsageError, distributed
from dpr_core.data.encoding import encode_response
from dpr_core.models.checkpoints import save

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
PROMPTS = ["Start at 4, add 3.", "Why?", "Start at 1."]
RESPONSES = ["Steps: 4+3=2. The answer is 2.", "So.", "The answer is 1 \u20ac."]

Pair = tuple[PreTrainedModel, PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture
def pair(tiny: Callable[..., Any], tmp_path: Path) -> Pair:
    """Two models of one tokenizer, saved as `sft` and `reference`."""
    (sft, tokenizer), (reference, _) = tiny("llama"), tiny("llama", seed=1)
    tokenizer.chat_template = CHAT
    save(sft, tokenizer, tmp_path / "sft")
    save(reference, tokenizer, tmp_path / "reference")
    return sft, reference, tokenizer


@pytest.fixture
def reward(pair: Pair, tmp_path: Path) -> DenseReward:
    return DenseReward.from_pretrained(tmp_path / "sft", tmp_path / "reference", device="cpu")


def log_probs(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits.float(), dim=-1)[range(len(response)), list(response)]


def by_hand(pair: Pair, prompt: Sequence[int], response: Sequence[int]) -> torch.Tensor:
    sft, reference, _ = pair
    return log_probs(sft, prompt, response) - log_probs(reference, prompt, response)


def test_the_public_names_are_there_and_importing_them_loads_no_torch() -> None:
    code = (
        "import sys, dpr_core\n"
        "assert set(dpr_core.__all__) <= set(dir(dpr_core))\n"
        "sys.exit(str({'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules) or ''))"
    )
    root = Path(dpr_core.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert all(getattr(dpr_core, name).__name__ == name for name in dpr_core.__all__)
    with pytest.raises(AttributeError, match="no attribute 'SparseReward'"):
        _ = dpr_core.SparseReward


def test_a_score_is_what_two_plain_passes_give(reward: DenseReward, pair: Pair) -> None:
    sft, reference, tokenizer = pair
    for prompt, text, scored in zip(PROMPTS, RESPONSES, reward.score(PROMPTS, RESPONSES, gamma=0.9), strict=True):
        asked, response = tokenizer(prompt)["input_ids"], encode_response(tokenizer, text)
        expected = by_hand(pair, asked, response)
        assert [t.reward for t in scored.tokens] == pytest.approx(expected.tolist(), abs=1e-4)
        assert [t.log_pi_sft for t in scored.tokens] == pytest.approx(
            log_probs(sft, asked, response).tolist(), abs=1e-4
        )
        assert [t.log_pi_ref for t in scored.tokens] == pytest.approx(
            log_probs(reference, asked, response).tolist(), abs=1e-4
        )
        discounted = sum(0.9**t * float(r) for t, r in enumerate(expected))
        assert scored.tokens[0].return_ == pytest.approx(discounted, abs=1e-4)
        assert "".join(t.token for t in scored.tokens) == text + tokenizer.eos_token
    page = reward.page(reward.score(PROMPTS, RESPONSES))
    assert "<!doctype html>" in page
    assert PROMPTS[0] in page


def test_a_score_depends_on_no_other_text_and_on_no_batch(
    reward: DenseReward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trainers run in several processes, of which each scores other texts: nothing is asked of the others.
    monkeypatch.setattr(distributed, "state", lambda: pytest.fail("the processes were asked for"))
    small = DenseReward.from_pretrained(
        tmp_path / "sft", tmp_path / "reference", device="cpu", tokens_per_micro_batch=1
    )
    together = reward(PROMPTS, RESPONSES)
    alone = [reward([prompt], [response])[0] for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    assert together == pytest.approx(alone, abs=1e-4)
    assert together == pytest.approx(small(PROMPTS, RESPONSES), abs=1e-4)
    assert together[::-1] == pytest.approx(reward(PROMPTS[::-1], RESPONSES[::-1]), abs=1e-4)
    assert together == pytest.approx([s.tokens[0].return_ for s in reward.score(PROMPTS, RESPONSES)], abs=1e-4)


def test_messages_are_read_through_the_chat_template(reward: DenseReward) -> None:
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPTS[0]}]
    answered = [{"role": "assistant", "content": RESPONSES[0]}]
    spelled = f"<system>Be brief.\n<user>{PROMPTS[0]}\n<a>"
    [scored] = reward.score([asked], [answered])
    assert scored.prompt == spelled
    assert scored.response == RESPONSES[0]
    with pytest.raises(UsageError, match="response 1: a text or one message"):
        reward([asked], [[*answered, *answered]])


def test_drawn_tokens_are_scored_as_they_are(reward: DenseReward, pair: Pair) -> None:
    ids = encode_response(pair[2], RESPONSES[0])
    [scored] = reward.score(PROMPTS[:1], RESPONSES[:1])
    cut = reward(PROMPTS[:1], [pair[2].decode(ids[:-1])], completion_ids=[ids[:-1]], trainer_state=None)
    assert cut == pytest.approx([sum(t.reward for t in scored.tokens[:-1])], abs=1e-4)
    of_another_tokenizer = reward(PROMPTS[:1], RESPONSES[:1], completion_ids=[[5, 6, 7]])
    assert of_another_tokenizer == pytest.approx([scored.tokens[0].return_], abs=1e-4)


def test_what_cannot_be_scored_is_told_in_a_sentence(reward: DenseReward, pair: Pair, tmp_path: Path) -> None:
    sft, _, tokenizer = pair
    for prompts, responses, said in (
        (PROMPTS, RESPONSES[:1], "a list of responses that is as long"),
        (PROMPTS[0], RESPONSES[0], "give a list of prompts"),
        ([[{"role": "user"}]], ["x"], "prompt 1: a message has a role, and a text as content"),
        ([[3]], ["x"], "prompt 1: a message has a role, and a text as content"),
        (["x" * 5000], ["x"], "text 1: .* tokens are more than the models' 1024 positions"),
    ):
        with pytest.raises(UsageError, match=said):
            reward.score(prompts, responses)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="gamma is 2"):
        reward.score(PROMPTS, RESPONSES, gamma=2)
    tokenizer.chat_template = None
    save(sft, tokenizer, tmp_path / "plain")
    plain = DenseReward.from_pretrained(tmp_path / "plain", tmp_path / "reference", device="cpu")
    with pytest.raises(UsageError, match="has no chat template; give prompts as texts"):
        plain.score([[{"role": "user", "content": "Why?"}]], ["So."])


def test_checkpoints_that_make_no_reward_are_told_in_a_sentence(
    pair: Pair, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    save(*tiny("qwen2"), tmp_path / "other")
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_model.bin").touch()
    pair[2].save_pretrained(tmp_path / "pickle")
    for reference, said in (
        ("sft", "sft and reference are both .*, so that the reward is 0 everywhere"),
        ("other", "the reference .* has another vocabulary than the SFT model: .* take one of the same tokenizer"),
        ("pickle", "holds no safetensors, but pytorch_model.bin: a pickle"),
        ("missing", "reference: there is no folder"),
    ):
        with pytest.raises(UsageError, match=said):
            DenseReward.from_pretrained(tmp_path / "sft", tmp_path / reference)
    with pytest.raises(UsageError, match=r"sft: dtype"):
        DenseReward.from_pretrained(tmp_path / "sft", tmp_path / "reference", dtype="float16")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("chat", [False, True], ids=["texts", "messages"])
def test_trl_trains_on_the_reward(chat: bool, reward: DenseReward, pair: Pair, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    from datasets import Dataset

    tokenizer = pair[2]
    expected: list[float] = []

    def plain(prompts: list[Any], completion_ids: list[list[int]], **_: object) -> list[float]:
        """The same reward by plain passes over what TRL's policy saw and drew."""
        for prompt, ids in zip(prompts, completion_ids, strict=True):
            asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True) if chat else tokenizer(prompt)
            expected.append(float(by_hand(pair, asked["input_ids"], ids).sum()))
        return [0.0] * len(prompts)

    prompts = [[{"role": "user", "content": text}] for text in PROMPTS[:2]] if chat else PROMPTS[:2]
    settings = trl.GRPOConfig(
        output_dir=str(tmp_path / "trained"),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=12,
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
    )
    trainer = trl.GRPOTrainer(
        model=str(tmp_path / "sft"),
        reward_funcs=[reward, plain],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts, "unused": ["x", "y"]}),
    )
    before = [weight.clone() for weight in trainer.model.parameters()]
    trainer.train()
    found = [logs["rewards/DenseReward/mean"] for logs in trainer.state.log_history if "reward" in logs]
    assert found == pytest.approx([sum(expected[i : i + 4]) / 4 for i in (0, 4)], rel=1e-3, abs=1e-3)
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
