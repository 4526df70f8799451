"""The built-in lab: synthetic tasks with verifiable results, and tiny networks that can learn some of them."""

from typing import Literal

Style = Literal["careful", "bare", "jump"]
"""An answer with all of its steps, with none, or with the first few."""
