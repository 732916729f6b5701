"""The one jitted sampler, the redrawing of given images, and image files."""
