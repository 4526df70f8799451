"""The paper's identities on tabular token MDPs, in float64: what holds, what does not, and by how much."""
