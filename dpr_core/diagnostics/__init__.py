"""What can be known of a reward before it is trained on."""
