"""The diffusion process: schedule, training loss, samplers and guidance, on arrays alone."""
