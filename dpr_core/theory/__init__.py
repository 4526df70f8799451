"""Numerical checks of the paper's identities on tabular token MDPs, in float64, residuals included."""
