"""Token rewards recovered from SFT (section 4.3 of arXiv 2510.02493).

All arguments are (B, T) over response tokens; position t holds the token a_t chosen in state s_t. A formula is one
function here, whose arguments are any of log_sft, log_ref, value_sft, mask and signs, and its name in
`dpr_core.config.reward.Formula`.

| function            | r(s_t, a_t)                                                | in the paper        |
|---------------------|------------------------------------------------------------|---------------------|
| `baseline_relative` | log pi_SFT(a_t given s_t) - log pi_ref(a_t given s_t)      | Eq. 5: DPR          |
| `with_value`        | log pi_SFT(a_t given s_t) + V_SFT(s_t) - V_SFT(s_{t+1})    | Table 2: w/V        |
| `without_baseline`  | log pi_SFT(a_t given s_t)                                  | Table 2: wo/Baseline|
| `random_sign`       | Eq. 5 times +1 or -1, by chance                            | a control of ours   |
"""

import torch
from torch import Tensor


def baseline_relative(log_sft: Tensor, log_ref: Tensor) -> Tensor:
    """Eq. 5: what the second part of the SFT run learned about this token."""
    return log_sft - log_ref


def with_value(log_sft: Tensor, value_sft: Tensor, mask: Tensor) -> Tensor:
    """The unshaped reward of Eq. 4. V after a response's last token is 0."""
    value = torch.where(mask, value_sft, 0)
    next_value = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    return log_sft + value - next_value


def without_baseline(log_sft: Tensor) -> Tensor:
    """The shaped reward alone; never positive, so it favours short responses."""
    return log_sft


def random_sign(log_sft: Tensor, log_ref: Tensor, signs: Tensor) -> Tensor:
    """As large as Eq. 5 everywhere, and right about nothing: `signs` holds +1 and -1."""
    return signs * baseline_relative(log_sft, log_ref)


def scaled(rewards: Tensor, scale: float, clip_above: float | None) -> Tensor:
    """min(r / scale, bound). Low rewards are left as low as they are."""
    rewards = rewards / scale
    return rewards if clip_above is None else rewards.clamp(max=clip_above)
