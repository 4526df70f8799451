"""Corruption detection: replace one token of a demonstration, and measure how well a score finds it (AUROC, top-1).

It measures credit assignment without labels, and chooses a reference checkpoint: the one whose reward finds most.
The replacement is a plausible slip: a token that the demonstrations have elsewhere between the same neighbours, two
before it and one after (in `4+3=2+1`, another sum for the 2). A response without such a place is slipped with fewer
neighbours. Text after the slip stays as it was.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dpr_core import rewards
from dpr_core.data.encoding import TokenSequence
from dpr_core.diagnostics.auroc import auroc
from dpr_core.errors import UsageError
from dpr_core.masking import response_mask
from dpr_core.models.policy import Policy
from dpr_core.models.scoring import score

NEIGHBOURS = ((2, 1), (1, 1), (1, 0), (0, 0))
"""How many tokens before and after a place must be the same where its replacement was seen, strictest first."""

Surroundings = tuple[int | None, ...]


@dataclass(frozen=True)
class Corrupted:
    """A demonstration with one token replaced by another."""

    sequence: TokenSequence
    position: int
    """Where in the response the replaced token is."""


class Detection(NamedTuple):
    """How well a score finds the corrupted tokens by being low on them."""

    auroc: float
    """Chance that a corrupted token scores below any other token of the corrupted responses."""

    top1: float
    """Share of the responses whose lowest score is that of the corrupted token."""


def corrupt(sequences: Sequence[TokenSequence], seed: int) -> list[Corrupted]:
    """Each response with one token replaced, never its last, which is the end token; and never by an end token.

    Responses in which nothing can be replaced, because they hold an end token alone, are left out.
    """
    rng = random.Random(f"corruption {seed}")
    seen = [_seen(sequences, before, after) for before, after in NEIGHBOURS]
    made = (_corrupted(sequence, seen, rng) for sequence in sequences)
    return [corrupted for corrupted in made if corrupted is not None]


def detection(scores: Tensor, mask: Tensor, positions: Sequence[int]) -> Detection:
    """How well (B, T) scores find the corrupted token, which is at `positions[i]` in row i and should score lowest."""
    is_corrupted = torch.zeros_like(mask)
    is_corrupted[torch.arange(len(mask)), torch.tensor(positions)] = True
    scores = torch.where(mask, scores, torch.inf)
    lowest = scores == scores.min(dim=1, keepdim=True).values
    found = (lowest & is_corrupted).sum(dim=1) / lowest.sum(dim=1)
    return Detection(auroc(-scores[is_corrupted], -scores[mask & ~is_corrupted]), float(found.mean()))


def detection_by_candidate(
    sft: Policy,
    candidates: Mapping[float, Callable[[], Policy]],
    demonstrations: Sequence[TokenSequence],
    seed: int,
    tokens_per_micro_batch: int | None,
) -> dict[float, float]:
    """AUROC of finding one replaced token by Eq. 5, for each candidate; candidates are loaded one at a time."""
    corrupted = corrupt(demonstrations, seed)
    if not corrupted:
        raise UsageError(
            "no demonstration has a token to replace, so no reference can be validated; raise probe_demonstrations"
        )
    sequences = [c.sequence for c in corrupted]
    positions = [c.position for c in corrupted]
    mask = response_mask([len(s.response) for s in sequences])
    log_sft = score(sft, sequences, tokens_per_micro_batch).log_probs
    found = {}
    for fraction, load in candidates.items():
        log_ref = score(load(), sequences, tokens_per_micro_batch).log_probs
        found[fraction] = detection(rewards.baseline_relative(log_sft, log_ref), mask, positions).auroc
    return found


def _corrupted(
    sequence: TokenSequence, seen: list[dict[Surroundings, set[int]]], rng: random.Random
) -> Corrupted | None:
    response = sequence.response
    for tokens, (before, after) in zip(seen, NEIGHBOURS, strict=True):
        others = {
            place: sorted(tokens[around] - {response[place]}) for place, around in _places(response, before, after)
        }
        if places := [place for place, candidates in others.items() if candidates]:
            place = rng.choice(places)
            slip = rng.choice(others[place])
            return Corrupted(TokenSequence(sequence.prompt, (*response[:place], slip, *response[place + 1 :])), place)
    return None


def _seen(sequences: Sequence[TokenSequence], before: int, after: int) -> dict[Surroundings, set[int]]:
    """The tokens that stand between the same neighbours, by these."""
    tokens: dict[Surroundings, set[int]] = {}
    for sequence in sequences:
        for place, around in _places(sequence.response, before, after):
            tokens.setdefault(around, set()).add(sequence.response[place])
    return tokens


def _places(response: tuple[int, ...], before: int, after: int) -> Iterator[tuple[int, Surroundings]]:
    """Every place but the last, with its neighbours; None stands before the start."""
    padded = (*[None] * before, *response)
    for place in range(len(response) - 1):
        yield place, (*padded[place : place + before], *padded[place + before + 1 : place + before + 1 + after])
