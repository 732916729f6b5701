"""What is trained of a model: pairs of functions `init` and `apply`."""
