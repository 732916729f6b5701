"""State, optimizer, steps, checkpoints, and the loop that calls them."""
