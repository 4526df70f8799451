"""Networks: policy, critic, reward, checkpoints, LoRA, sharding and packed attention."""
