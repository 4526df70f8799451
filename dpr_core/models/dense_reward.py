"""The dense token reward recovered from SFT: two frozen checkpoints, a formula, and the token credit of given text."""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dpr_core import rewards
from dpr_core.config.reward import NOT_PER_TOKEN, PER_TOKEN, Arithmetic
from dpr_core.data.batching import Batch
from dpr_core.data.encoding import TokenSequence
from dpr_core.data.rows import Exchange
from dpr_core.data.template import Renderer
from dpr_core.errors import UsageError, naming
from dpr_core.logprobs import OverVocabulary, States, TokenScores, scores_and_expected_reward
from dpr_core.masking import response_mask
from dpr_core.models.extrapolation import ContrastivePolicy
from dpr_core.models.policy import Policy, Wanted, computing_in
from dpr_core.models.scoring import OnProgress, grouped, score, score_at, score_columns, score_with_kl
from dpr_core.models.sharding import eval_mode
from dpr_core.returns import reward_to_go

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT_CHARACTER = "\ufffd"
"""The decoding of an incomplete UTF-8 sequence."""


class ScoredTokens(NamedTuple):
    """(B, T) over response tokens, 0 outside the mask."""

    rewards: Tensor
    log_sft: Tensor
    """log pi_SFT, or that of the teacher in its place."""
    log_ref: Tensor
    value_gap: Tensor
    """V_SFT(s) - V_ref(s) in the state in front of each token, with V = logsumexp of a model's logits."""
    mask: Tensor


class ExpectedReward(NamedTuple):
    """What `TokenReward.with_expected` finds."""

    scored: ScoredTokens
    log_sft: Tensor
    policy: TokenScores
    expected: Tensor
    """(B, T): E[r(s, a)] over what the policy may draw in the state in front of each token."""


@dataclass
class TokenReward:
    """Scores responses under both models in the same shapes; the pass of pi_SFT serves reward and KL alike."""

    sft: Policy
    reference: Policy
    formula: str
    """A function of `dpr_core.rewards`; it is called with the arguments that it names."""
    tokens_per_micro_batch: int | None = None
    scale: float = 1.0
    clip_above: float | None = None
    seed: int = 0
    arithmetic: Arithmetic | None = None
    """How both compute the reward; none as they compute all else."""
    keep_weights: bool = False
    """Hold the weights as they are, though this arithmetic would need them rounded alone."""
    teacher: Policy | None = None
    """In the reward it has the place of pi_SFT, to which the KL stays."""

    def __post_init__(self) -> None:
        rounded = not self.keep_weights and not self.differs
        for model in (self.sft, self.reference, self.target):
            model.freeze(rounded)

    @property
    def target(self) -> Policy:
        """The model whose log-probs are rewarded."""
        return self.sft if self.teacher is None else self.teacher

    @property
    def differs(self) -> bool:
        """Whether the reward is computed in another way than pi_SFT draws and its KL is measured."""
        return self.arithmetic is not None and self.arithmetic != name_of(self.sft.activations)

    @property
    def apart(self) -> bool:
        """Whether the passes for the reward are of no use for the KL to pi_SFT."""
        return self.differs or self.teacher is not None

    def __call__(self, sequences: Sequence[TokenSequence], on_progress: OnProgress | None = None) -> ScoredTokens:
        return self.of_scores(*self.scores(sequences, on_progress), sequences)

    def scores(
        self, sequences: Sequence[TokenSequence], on_progress: OnProgress | None = None
    ) -> tuple[TokenScores, TokenScores]:
        """Those of pi_SFT, or the teacher, and of the reference that make the reward, whatever its scale."""
        with computing_in(self.arithmetic, self.target, self.reference):
            sft = score(self.target, sequences, self.tokens_per_micro_batch, on_progress=on_progress)
            return sft, score(self.reference, sequences, self.tokens_per_micro_batch)

    def with_log_sft(
        self,
        sequences: Sequence[TokenSequence],
        temperature: float,
        on_progress: OnProgress | None = None,
    ) -> tuple[ScoredTokens, Tensor]:
        """Also log pi_SFT at a temperature as pi_SFT itself computes, out of its pass for the reward where that is
        computed so, too."""
        budget = self.tokens_per_micro_batch
        if temperature != 1 and not self.apart:
            sft, tempered = score_at(self.sft, (1.0, temperature), sequences, budget, on_progress)
            return self.of_scores(sft, score(self.reference, sequences, budget), sequences), tempered.log_probs
        scored = self(sequences, on_progress)
        if temperature == 1 and not self.differs and self.reference is self.sft:
            return scored, scored.log_ref
        if self.apart:
            return scored, score(self.sft, sequences, budget, temperature=temperature).log_probs
        return scored, scored.log_sft

    def with_kl(
        self,
        sequences: Sequence[TokenSequence],
        policy: Policy | ContrastivePolicy,
        entropy_at: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> tuple[ScoredTokens, Tensor, Tensor]:
        """Also (B, T) the exact KL(policy || pi_SFT) in the state in front of each token as pi_SFT itself computes, out
        of its pass for the reward where that is computed so, too, and the policy's entropy at a temperature."""
        budget = self.tokens_per_micro_batch
        if self.apart:
            kl, entropies = score_with_kl(policy, [self.sft], sequences, budget, entropy_at, on_progress)[1:]
            return self(sequences), kl, entropies
        (sft, ref), kl, entropies = score_with_kl(
            policy, [self.sft, self.reference], sequences, budget, entropy_at, on_progress
        )
        return self.of_scores(sft, ref, sequences), kl, entropies

    def with_expected(
        self,
        sequences: Sequence[TokenSequence],
        policy: Policy,
        temperature: float,
        on_progress: OnProgress | None = None,
    ) -> "ExpectedReward":
        """As `with_log_sft`, and from the same logits the policy's scores at that temperature and the reward that it
        expects in the state in front of each token."""
        self.check_per_token()

        def compute(batch: Batch) -> list[Tensor]:
            states = policy.response_states(batch)
            target, reference = self._logits(batch)
            scores, expected = scores_and_expected_reward(
                lambda chunk: policy.logits(states, chunk, temperature),
                target,
                reference,
                self.of_tokens,
                batch.targets,
                policy.rows_of_three(learning=False),
            )
            log_sft = scores[1].log_probs
            if temperature != 1 or self.apart:
                log_sft = self.sft(batch, temperature=temperature).log_probs
            return [expected, log_sft, *(column for each in scores for column in each)]

        with eval_mode(policy, *{self.sft, self.target, self.reference}):
            expected, log_sft, *columns = score_columns(
                policy, compute, 11, sequences, self.tokens_per_micro_batch, on_progress
            )
        ours, sft, ref = grouped(columns)
        return ExpectedReward(self.of_scores(sft, ref, sequences), log_sft, ours, expected)

    def wanted(self, batch: Batch, temperature: float, kl_weight: float) -> Wanted:
        """w = r + beta log pi_SFT of every token in the states of a batch, and beta: whoever has the most of E[w] plus
        beta times its entropy has the most reward less beta KL(pi || pi_SFT), both at that temperature."""
        self.check_per_token()
        with torch.no_grad():
            target, reference = self._logits(batch)
            own = self.sft.response_states(batch) if kl_weight and self.apart else None

        def of_vocabulary(chunk: slice) -> Tensor:
            log_target = torch.log_softmax(target(chunk), dim=-1)
            rewards = self.of_tokens(log_target, torch.log_softmax(reference(chunk), dim=-1))
            if not kl_weight:
                return rewards
            log_sft = log_target if own is None else self.sft.logits(own, chunk)
            return rewards + kl_weight * torch.log_softmax(log_sft / temperature, dim=-1)

        return of_vocabulary, kl_weight

    def check_per_token(self) -> None:
        """UsageError where the reward of a token is more than both models' probability of it."""
        if self.formula not in PER_TOKEN:
            raise UsageError(NOT_PER_TOKEN.format(self.formula))
        heads: list[Any] = [policy.model.get_output_embeddings() for policy in (self.target, self.sft)]
        theirs, ours = (len(head.weight) for head in heads)
        if theirs != ours:
            raise UsageError(
                f"the teacher's head has {theirs} rows and the policy's {ours}, so that no reward of the whole "
                "vocabulary can be made of both; take an algorithm and a baseline of drawn tokens alone"
            )

    def of_tokens(self, log_sft: Tensor, log_ref: Tensor) -> Tensor:
        """The reward of any tokens that a formula of `PER_TOKEN` makes of their log-probs, of any shape."""
        formula, given = getattr(rewards, self.formula), {"log_sft": log_sft, "log_ref": log_ref}
        raw = formula(**{name: given[name] for name in inspect.signature(formula).parameters})
        return rewards.scaled(raw, self.scale, self.clip_above)

    def _logits(self, batch: Batch) -> list[OverVocabulary]:
        """Of pi_SFT, or the teacher, and of the reference, in the reward's arithmetic."""

        def logits(network: Policy, states: States, chunk: slice) -> Tensor:
            with computing_in(self.arithmetic, network):
                return network.logits(states, chunk)

        networks = self.target, self.reference
        with computing_in(self.arithmetic, *networks):
            return [partial(logits, network, network.response_states(batch)) for network in networks]

    def of_scores(self, sft: TokenScores, ref: TokenScores, sequences: Sequence[TokenSequence]) -> ScoredTokens:
        """The reward that both models' scores of these sequences make."""
        mask = response_mask([len(s.response) for s in sequences])
        formula = getattr(rewards, self.formula)
        needed = inspect.signature(formula).parameters
        inputs = {"log_sft": sft.log_probs, "log_ref": ref.log_probs, "value_sft": sft.values, "mask": mask}
        if "signs" in needed:
            inputs["signs"] = random_signs(sequences, self.seed)
        raw = formula(**{name: inputs[name] for name in needed})
        token_rewards = torch.where(mask, rewards.scaled(raw, self.scale, self.clip_above), 0)
        return ScoredTokens(token_rewards, sft.log_probs, ref.log_probs, sft.values - ref.values, mask)


def name_of(dtype: torch.dtype) -> Arithmetic:
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def random_signs(sequences: Sequence[TokenSequence], seed: int) -> Tensor:
    """(B, T) of +1 and -1, a hash of seed, state and token: independent of the rest of the batch."""
    signs = torch.ones(response_mask([len(s.response) for s in sequences]).shape)
    for row, sequence in enumerate(sequences):
        prefix = hashlib.sha256(repr((seed, sequence.prompt)).encode())
        for t, token in enumerate(sequence.response):
            prefix.update(b" %d" % token)
            signs[row, t] = 1 - 2 * (prefix.digest()[0] & 1)
    return signs


@dataclass(frozen=True)
class TokenCredit:
    """One response token with its log-probs, its reward and its reward-to-go."""

    position: int
    token_id: int
    token: str
    log_pi_sft: float
    log_pi_ref: float
    reward: float
    return_: float


@dataclass(frozen=True)
class ScoredText:
    """A response with the credit of each token; `input_ids` are those of prompt and response."""

    prompt: str
    response: str
    input_ids: list[int]
    tokens: list[TokenCredit]


@dataclass(frozen=True)
class GivenText:
    """A prompt and a response to score."""

    prompt: str
    response: str
    system: str = ""
    answer: str = ""
    """The result that a right response states, where that is known."""
    history: tuple[Exchange, ...] = ()
    """What was said before the prompt."""


def assign_credit(
    reward: TokenReward,
    tokenizer: "PreTrainedTokenizerBase",
    renderer: Renderer,
    texts: Sequence[GivenText],
    on_progress: OnProgress | None = None,
) -> list[ScoredText]:
    """The token credit of each text, end token included; returns are undiscounted (the paper's Figure 1)."""
    sequences = encode_texts(tokenizer, renderer, texts)
    limit = reward.sft.model.config.get_text_config().max_position_embeddings
    for i, sequence in enumerate(sequences, start=1):
        if len(sequence) > limit:
            raise UsageError(f"text {i}: {len(sequence)} tokens are more than the model's {limit} positions")
    return credit_of(tokenizer, texts, sequences, reward(sequences, on_progress))


def encode_texts(
    tokenizer: "PreTrainedTokenizerBase", renderer: Renderer, texts: Sequence[GivenText]
) -> list[TokenSequence]:
    """Token ids as in training: rendered prompts, and responses with an end token."""
    sequences = []
    for i, text in enumerate(texts, start=1):
        if not text.prompt.strip() or not text.response.strip():
            raise UsageError(f"text {i}: prompt and response must not be empty")
        with naming(f"text {i}"):
            sequences.append(renderer.demonstration(tokenizer, text.prompt, text.response, text.system, text.history))
    return sequences


def credit_of(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[GivenText],
    sequences: Sequence[TokenSequence],
    scored: ScoredTokens,
    gamma: float = 1.0,
) -> list[ScoredText]:
    """Scored tokens as plain values beside the tokens' texts."""
    returns = reward_to_go(scored.rewards, scored.mask, gamma)
    return [
        ScoredText(
            prompt=text.prompt,
            response=text.response,
            input_ids=[*sequence.prompt, *sequence.response],
            tokens=[
                TokenCredit(
                    position=t,
                    token_id=token,
                    token=piece,
                    log_pi_sft=float(scored.log_sft[i, t]),
                    log_pi_ref=float(scored.log_ref[i, t]),
                    reward=float(scored.rewards[i, t]),
                    return_=float(returns[i, t]),
                )
                for t, (token, piece) in enumerate(
                    zip(sequence.response, token_texts(tokenizer, sequence.response), strict=True)
                )
            ],
        )
        for i, (text, sequence) in enumerate(zip(texts, sequences, strict=True))
    ]


def token_texts(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    """The text that each token adds; concatenated they are the decoded text, special tokens spelled out.

    A character of several tokens belongs to the last of them. Tokens are decoded together with the one before, since
    some decoders treat the start of a text differently.
    """
    full = _decode(tokenizer, ids)
    spelled = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    pieces: list[str] = []
    shown = context = settled = 0
    for end, token in enumerate(ids, start=1):
        before = _decode(tokenizer, ids[context:settled])
        piece = full[shown:] if end == len(ids) else _decode(tokenizer, ids[context:end])[len(before) :]
        if (piece.endswith(REPLACEMENT_CHARACTER) and end < len(ids)) or not full.startswith(piece, shown):
            pieces.append("")
            continue
        shown += len(piece)
        context, settled = settled, end
        if pieces and piece != (own := spelled.get(token, piece)) and piece.endswith(own):
            pieces[-1] += piece.removesuffix(own)
            piece = own
        pieces.append(piece)
    return pieces


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
