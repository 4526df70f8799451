"""Training loops: SFT, REINFORCE with its hooks, self-play, and the optimizer step that they share."""
