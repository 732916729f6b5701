"""What a command does, as a function with typed arguments."""
