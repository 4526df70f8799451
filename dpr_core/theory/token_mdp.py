"""Tabular token MDPs with all trajectories enumerated (appendix A.1).

States are numbered by depth and no state comes back, so each belongs to one step. Ends of a response are terminal
states, numbered behind the others: `transitions` is (S, A, S + T). A token tree is the deterministic case, s' = s|a.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

EOS = 0


@dataclass(frozen=True)
class Mdp:
    """S states, A actions, T terminal states; `initial` (S,) is rho_0, `transitions` (S, A, S + T) is P(s' | s, a)."""

    initial: Tensor
    transitions: Tensor
    horizon: int

    @property
    def states(self) -> int:
        return self.transitions.shape[0]

    @property
    def actions(self) -> int:
        return self.transitions.shape[1]

    @property
    def terminals(self) -> int:
        return self.transitions.shape[2] - self.states

    @cached_property
    def trajectories(self) -> "Trajectories":
        """Every trajectory that rho_0 and P allow."""
        return _enumerate(self)


@dataclass(frozen=True)
class Trajectories:
    """All trajectories of an MDP, (N, H); outside `mask`, behind a trajectory's end, stand state 0 and action 0."""

    states: Tensor
    actions: Tensor
    mask: Tensor
    ends: Tensor
    """(N,) the terminal state, counted from 0."""
    dynamics: Tensor
    """(N,) rho_0(s_0) times the product of P(s_{t+1} | s_t, a_t)."""

    def along(self, table: Tensor) -> Tensor:
        """A table over states (S,) or over states and actions (S, A), read along every trajectory; 0 behind its end."""
        values = table[self.states] if table.dim() == 1 else table[self.states, self.actions]
        return torch.where(self.mask, values, 0)

    def probabilities(self, policy: Tensor) -> Tensor:
        """(N,) Pr_pi(tau)."""
        return self.dynamics * torch.where(self.mask, policy[self.states, self.actions], 1).prod(1)

    def occupancy(self, weights: Tensor, like: Tensor, gamma: float = 1.0) -> Tensor:
        """rho(s, a) of a weighted set of trajectories, for instance of demonstrations, in the shape of `like` (A.1)."""
        discounts = gamma ** torch.arange(self.mask.shape[1], dtype=weights.dtype)
        visits = torch.where(self.mask, weights[:, None] * discounts, 0)
        return torch.zeros_like(like).index_put((self.states, self.actions), visits, accumulate=True)


def token_tree(vocabulary: int, horizon: int, initial: Tensor | None = None) -> Mdp:
    """The token MDP of A.1: token 0 is EOS, a response ends there or after `horizon` tokens, a prompt is a root."""
    initial = torch.ones(1, dtype=torch.float64) if initial is None else initial
    layers, count = [list(range(len(initial)))], len(initial)
    edges: list[tuple[int, int, int | None]] = []
    for depth in range(horizon):
        following: list[int] = []
        for state in layers[-1]:
            for token in range(vocabulary):
                if token == EOS or depth == horizon - 1:
                    edges.append((state, token, None))
                else:
                    edges.append((state, token, count))
                    following.append(count)
                    count += 1
        layers.append(following)
    ends = sum(target is None for _, _, target in edges)
    transitions = torch.zeros(count, vocabulary, count + ends, dtype=torch.float64)
    end = count
    for state, token, target in edges:
        transitions[state, token, end if target is None else target] = 1
        end += target is None
    full = torch.zeros(count, dtype=torch.float64)
    full[: len(initial)] = initial
    return Mdp(full, transitions, horizon)


def stochastic_mdp(width: int, actions: int, horizon: int, generator: torch.Generator) -> Mdp:
    """An MDP outside the paper's setting: `width` states a step, random transitions, two ends behind each state."""
    count = width * horizon
    transitions = torch.zeros(count, actions, count + 2, dtype=torch.float64)
    for step in range(horizon):
        rows = slice(step * width, (step + 1) * width)
        if step < horizon - 1:
            columns = [*range((step + 1) * width, (step + 2) * width), count, count + 1]
        else:
            columns = [count, count + 1]
        transitions[rows, :, columns] = random_policy((width, actions, len(columns)), generator)
    initial = torch.zeros(count, dtype=torch.float64)
    initial[:width] = random_policy((width,), generator)
    return Mdp(initial, transitions, horizon)


def random_q(mdp: Mdp, generator: torch.Generator, deviation: float = 1.0) -> Tensor:
    """A random Q(s, a), or reward, (S, A)."""
    return deviation * torch.randn(mdp.states, mdp.actions, generator=generator, dtype=torch.float64)


def random_policy(shape: tuple[int, ...], generator: torch.Generator, deviation: float = 1.5) -> Tensor:
    """Random distributions over the last dimension."""
    return torch.softmax(deviation * torch.randn(shape, generator=generator, dtype=torch.float64), dim=-1)


def state_occupancy(mdp: Mdp, policy: Tensor, gamma: float = 1.0) -> Tensor:
    """sum_t gamma^t Pr_pi(s_t = s), (S,), from the flow equations d = rho_0 + gamma P_pi^T d (A.1)."""
    moves = torch.einsum("sa,san->sn", policy, mdp.transitions[:, :, : mdp.states])
    identity = torch.eye(mdp.states, dtype=torch.float64)
    visits: Tensor = torch.linalg.solve(identity - gamma * moves.T, mdp.initial)
    return visits


def occupancy(mdp: Mdp, policy: Tensor, gamma: float = 1.0) -> Tensor:
    """rho_pi(s, a), (S, A): sums to the expected length, not to 1 (A.1)."""
    return state_occupancy(mdp, policy, gamma)[:, None] * policy


def expected_return(mdp: Mdp, policy: Tensor, reward: Tensor, gamma: float = 1.0) -> Tensor:
    """J_r(pi) = <rho_pi, r> (A.7)."""
    return (occupancy(mdp, policy, gamma) * reward).sum()


def next_value(mdp: Mdp, value: Tensor, terminal: Tensor | None = None) -> Tensor:
    """E[V(s') | s, a], (S, A); V of the terminal states is 0 unless `terminal` (T,) says otherwise."""
    ends = torch.zeros(mdp.terminals, dtype=torch.float64) if terminal is None else terminal
    return mdp.transitions @ torch.cat([value, ends])


def _enumerate(mdp: Mdp) -> Trajectories:
    finished: list[tuple[list[int], list[int], int, float]] = []
    open_ones = [([s], list[int](), p) for s, p in enumerate(mdp.initial.tolist()) if p > 0]
    while open_ones:
        states, actions, probability = open_ones.pop(0)
        for action in range(mdp.actions):
            row = mdp.transitions[states[-1], action]
            for target in row.nonzero()[:, 0].tolist():
                chance = probability * float(row[target])
                if target >= mdp.states:
                    finished.append((states, [*actions, action], target - mdp.states, chance))
                else:
                    open_ones.append(([*states, target], [*actions, action], chance))
    pad = mdp.horizon
    lengths = torch.tensor([len(actions) for _, actions, _, _ in finished])
    return Trajectories(
        states=torch.tensor([s + [0] * (pad - len(s)) for s, _, _, _ in finished]),
        actions=torch.tensor([a + [0] * (pad - len(a)) for _, a, _, _ in finished]),
        mask=torch.arange(pad) < lengths[:, None],
        ends=torch.tensor([end for _, _, end, _ in finished]),
        dynamics=torch.tensor([chance for _, _, _, chance in finished], dtype=torch.float64),
    )
