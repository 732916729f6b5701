"""Features of images by the networks of `medsd_jax.vision`, for metrics and for losses.

extraction   networks by name, and the features of whole sets of images
latent       the encoder's half of a Stable Diffusion VAE as one of these networks
perceptual   feature maps that a loss can be differentiated through
specs        how a network is named
rough        thumbnails and means, which need no network
"""
