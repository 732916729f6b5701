"""The diffusion process: schedule, training loss, DDIM and guidance, on arrays alone."""
