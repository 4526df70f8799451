"""Launching a stage on several processes or machines: rendezvous, ranks, decisions for all of them."""
