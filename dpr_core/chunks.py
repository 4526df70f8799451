"""Chunked logits: how many rows are computed at once. Free of torch, since a memory plan counts them, too."""


def rows_of_logits(vocabulary: int, logits_per_chunk: int, unlearned_on_cpu: bool) -> int:
    """Tokens whose logits exist at once."""
    rows = max(1, logits_per_chunk // vocabulary)
    # Where nothing is kept for a backward pass, no more at once than makes a core's matrix product fast.
    return min(rows, max(128, 2**20 // vocabulary)) if unlearned_on_cpu else rows
