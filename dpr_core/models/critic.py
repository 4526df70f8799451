"""The critic (value function): a copy of the policy's body with a linear value head."""

import copy

import torch
from torch import Tensor, nn

from dpr_core.data.batching import Batch
from dpr_core.models.packed_attention import response_hidden_states, uses_packing
from dpr_core.models.policy import Policy, autocast
from dpr_core.models.sharding import device_of, is_sharded, unsharded_copy


class Critic(nn.Module):
    """V(s) = w h(s) + b in float32. The copy trains the weights that the policy trains, or all where the policy is
    frozen. w and b start at 0, and so does V."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.activations = policy.activations
        self.packing = policy.packing
        self.limits = policy.limits
        model = unsharded_copy(policy.model, torch.device("cpu"))
        self.model = copy.deepcopy(model.get_decoder()) if model is policy.model else model.get_decoder()
        if not any(weight.requires_grad for weight in self.model.parameters()):
            self.model.requires_grad_(True)
        width = policy.model.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1, device=policy.device, dtype=torch.float32)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def packed(self) -> bool:
        return uses_packing(self.model, self.device, self.packing)

    @property
    def device(self) -> torch.device:
        return device_of(self)

    def forward(self, batch: Batch) -> Tensor:
        """(N,) values of the states in front of the batch's response tokens."""
        with autocast(self.activations, self.device, keep_casts=not is_sharded(self)):
            hidden = response_hidden_states(self.model, batch)
        # A copy, since FSDP's backward pass cannot start from a view.
        values: Tensor = self.head(hidden.float())[:, 0].clone()
        return values
