r"""Fine-tune the decoder of a Stable Diffusion VAE on your own images, 512 pixels.

The encoder stays as it is, and with it the latents: every U-Net that was trained on them goes on
working, cached latents stay valid, and the new decoder can be exchanged for the old one.

Command:   medsd-jax train --config vae_decoder --workdir runs/vae_decoder \
               --config.model.path=CompVis/stable-diffusion-v1-4 \
               --config.data.source=folder --config.data.path=my_images
           Texture too: --config.vae.perceptual_weight=0.1 \
               --config.vae.perceptual_features=xrv=FILE   (or classifier=FOLDER, inception=FILE)
           Before and after: medsd-jax reconstruct --model runs/vae_decoder \
               --real runs/vae_decoder/data:validation --output runs/reconstruction
Hardware:  one GPU or TPU chip; on N of them train.accumulation_steps=8 / N.
Memory:    24 GB (computed 17.3); an image of a micro-batch takes 12 of it, and by XLA's analysis of
           the step on a CPU 8.5. The U-Net lies beside it, unused.
Expected:  not run at this size yet.

The paper (arXiv 2210.04133) measures the VAE as it is and finds that it needs no fine-tuning, so
that it is silent on all of this. Here the loss is that of latent diffusion without its
discriminator. Learning rate, batch and steps are our own choice for a start. KL is off: it
belongs to the encoder, and the decoder gets no gradient from it.
"""

from ml_collections import ConfigDict

from medsd_jax.config import training_config


def get_config() -> ConfigDict:
    """The defaults with the decoder alone trained."""
    config = training_config()
    config.task = "vae"
    config.vae.train = (r"^vae\.(decoder|post_quant_conv)\.",)
    config.vae.kl_weight = 0.0
    config.data.source = "folder"
    config.data.batch_size = 8
    config.optim.learning_rate = 1e-5
    config.optim.warmup_steps = 100
    config.optim.weight_decay = 0.0
    config.train.steps = 5000
    config.train.accumulation_steps = 8  # one image at once
    config.train.ema_decay = 0.999
    return config
