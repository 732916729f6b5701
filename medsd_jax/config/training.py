"""The config of a training of a diffusion model, or of its VAE: every key with its meaning."""

from ml_collections import ConfigDict, config_dict

from medsd_jax.config.sections import (
    add_checkpoint,
    add_data,
    add_log,
    add_mesh,
    add_model,
    add_optim,
    add_sampling,
)
from medsd_jax.data.findings import PAPER_EFFUSION, PAPER_NORMAL


def training_config() -> ConfigDict:
    """All keys of a training of a diffusion model or its VAE: ``medsd-jax train``."""
    config = ConfigDict()

    # "diffusion" trains the denoiser (and more, by adaptation.train); "vae" trains the autoencoder.
    config.task = "diffusion"
    config.seed = 0  # of everything random in training: data order, noise, timesteps, dropout

    add_model(config)
    # Of the U-Net: "auto" (the fastest measured for each call), "xla", "chunked" (for CPUs), or
    # "cudnn": the fused kernel of NVIDIA GPUs from Ampere on wherever it takes a call, XLA for
    # prompts (odd lengths) and too wide heads; refused on other devices and for float32, which
    # upcast_attention means too. models/attention.py.
    config.model.attention = "auto"
    # Recompute the U-Net's blocks in the backward pass: less memory, about 1/3 more time.
    config.model.remat = False

    # Task "diffusion": what is trained of the model.
    config.adaptation = ConfigDict()
    # "full" (the weights themselves), "lora" (a low-rank difference to the kernels among them), or
    # "textual_inversion" (the embeddings of a new word).
    config.adaptation.name = "full"
    # Regular expressions on weight names. Add r"^text_encoder\." to train the text encoder too.
    # Empty for textual inversion.
    config.adaptation.train = (r"^unet\.",)
    # LoRA only: the rank r of the difference, such as 16.
    config.adaptation.lora_rank = config_dict.placeholder(int)
    # LoRA only; the difference is multiplied by alpha / rank, usually 1.
    config.adaptation.lora_alpha = config_dict.placeholder(float)
    # Textual inversion only: the new word, such as "<lung-xray>", in the captions trained on.
    config.adaptation.placeholder_token = config_dict.placeholder(str)
    # Textual inversion only: a known word that the new one starts as.
    config.adaptation.initializer_token = config_dict.placeholder(str)
    # Textual inversion only: how many tokens the new word becomes.
    config.adaptation.num_vectors = config_dict.placeholder(int)

    add_data(config)
    config.data.resize_mode = "pad"  # "pad" to a square (RoentGen), "crop" its centre, or "squash"
    # Encode every training image once, in float32, and keep the posterior's moments on disk. Needs
    # a frozen VAE.
    config.data.cache_latents = False
    config.data.num_workers = 2  # threads that decode images

    # The paper's few images: so many with a finding and as many without any, one per patient, each
    # with one of two prompts. 0: train on everything, with the data set's own captions.
    config.few_shot = ConfigDict()
    # With the finding, and as many without any; 0: the whole data set.
    config.few_shot.images_per_prompt = 0
    config.few_shot.label = "pleural_effusion"  # 1 or 0 in the data set
    # Caption of the images with the finding.
    config.few_shot.prompt_with = PAPER_EFFUSION
    # Caption of the images without any finding.
    config.few_shot.prompt_without = PAPER_NORMAL

    # Prior preservation (DreamBooth, 2208.12242): the loss of images that the model itself drew
    # before training, added to that of the data.
    config.prior = ConfigDict()
    config.prior.weight = 0.0  # lambda; 0 switches it off
    # Another model that draws them, for one that cannot draw yet; None: model.path.
    config.prior.path = config_dict.placeholder(str)
    # Of the images, in turn: the class that the training captions belong to, and none of them.
    # Under a caption that the data has too, the model would learn a mixture of both.
    config.prior.prompts = ("A photo of an x-ray",)
    # Why prior.prompts may be captions of the data here, in words; None: that is refused.
    config.prior.same_prompts_because = config_dict.placeholder(str)
    config.prior.num_images = 200  # sampled once, kept in data.cache_dir
    config.prior.batch_size = 8  # of them in every optimizer step, beside data.batch_size
    config.prior.seed = 0  # image i has seed + i
    add_sampling(config.prior, guidance_scale=4.0)

    add_optim(config)

    config.train = ConfigDict()
    config.train.steps = 1000  # optimizer steps
    # Micro-batches per optimizer step. With 1, a bfloat16 model's gradients are summed over devices
    # in bfloat16; with more, in float32.
    config.train.accumulation_steps = 1
    config.train.ema_decay = 0.9999  # moving average of the weights; 0 switches it off
    # Share of captions replaced by the empty prompt; guidance needs some.
    config.train.caption_dropout = 0.1
    # Min-SNR loss weights (5.0 in the paper); None: off.
    config.train.min_snr_gamma = config_dict.placeholder(float)

    config.vae = ConfigDict()  # task "vae" only
    # Regular expressions on weight names; r"^vae\.(decoder|post_quant_conv)\." keeps the latents.
    config.vae.train = (r"^vae\.",)
    # Of the divergence between the latents' posterior and a standard normal.
    config.vae.kl_weight = 1e-6
    # Times the distance in the feature maps of a frozen network, so that texture counts beside grey
    # values (training/perceptual.py); 0 switches it off.
    config.vae.perceptual_weight = 0.0
    # That network: "classifier=FOLDER", "xrv=FILE" or "inception=FILE", as for `evaluate`.
    config.vae.perceptual_features = config_dict.placeholder(str)
    # At the end, set scaling_factor to 1 / std of the latents of the validation images.
    config.vae.measure_scaling_factor = False

    add_mesh(config)
    add_log(config)
    add_checkpoint(config)

    config.validation = ConfigDict()
    # And at step 0, at the end, and with every evaluation; 0 switches it off.
    config.validation.every_steps = 250
    config.validation.num_images = 64  # the first ones of the validation split
    config.validation.seed = 1  # of the fixed noise

    # Task "diffusion": fixed prompts and seeds, sampled into an image.
    config.preview = ConfigDict()
    config.preview.every_steps = 500  # and at the end; 0 switches it off
    # Sampled in this order.
    config.preview.prompts = (PAPER_NORMAL, PAPER_EFFUSION)
    config.preview.images_per_prompt = 4  # of each prompt
    config.preview.seed = 0  # image i of a prompt has seed + i
    add_sampling(config.preview, guidance_scale=4.0)

    # Task "diffusion": metrics of the averaged weights, and the best weights by one of them.
    config.evaluation = ConfigDict()
    config.evaluation.every_steps = 0  # and at the end; 0 switches it off
    # Any of "validation_loss", "prompt_accuracy" and, against the validation split's images, "fid",
    # "kid", "precision" and "recall"; and classes of your own as "FILE.py:CLASS" or "MODULE:CLASS"
    # (workflows/train/evaluators).
    config.evaluation.metrics = ("validation_loss",)
    # The metric, any scalar of theirs, by which WORKDIR/best holds the best weights; None: none are
    # kept.
    config.evaluation.keep_best = config_dict.placeholder(str)
    # Feature space of the four distances, as for `evaluate`: "classifier=FOLDER", "inception=FILE".
    config.evaluation.features = config_dict.placeholder(str)
    # Classifier of "prompt_accuracy": a folder that train-classifier wrote, and which finding it
    # sees.
    config.evaluation.classifier = config_dict.placeholder(str)
    config.evaluation.label = "pleural_effusion"  # the finding that the classifier looks for
    # Ask for the finding, in turn.
    config.evaluation.prompts_with = (PAPER_EFFUSION,)
    config.evaluation.prompts_without = (PAPER_NORMAL,)  # do not ask for it, in turn
    # Images sampled for the distances, from captions spread over the validation split; and as
    # many for "prompt_accuracy", half of them with the finding.
    config.evaluation.num_images = 128
    # Of the first image; image i has seed + i, in each half of those for "prompt_accuracy".
    config.evaluation.seed = 0
    add_sampling(config.evaluation, guidance_scale=4.0)

    return config
