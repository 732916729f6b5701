"""Every key, its default, its unit and its meaning: the only home of defaults.

`get_config` is for train.py, `get_classifier_config` for the judge of generated pictures,
`get_compare_training_config` for what generated pictures are good for,
`get_text_projection_config` for a projection from another text encoder into CLIP's space. What
trains nothing has `get_vae_audit_config`, `get_text_probe_config` and `get_sampling_config`: there
every key is a flag, too, and a flag that is given wins.

A recipe imports this and changes what differs. Override a key on the command line with
``--config.section.key=value``. A key that does not exist is an error.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The full configuration."""
    config = ConfigDict()

    # "diffusion" trains the denoiser (and more, by adaptation.train); "vae" trains the autoencoder.
    config.task = "diffusion"
    config.seed = 0  # of everything random in training: data order, noise, timesteps, dropout

    config.model = ConfigDict()
    # A diffusers folder, a hub id, or the workdir of an earlier run. Shapes are its config.json's.
    config.model.path = config_dict.required_placeholder(str)
    config.model.variant = config_dict.placeholder(str)  # "fp16" reads *.fp16.safetensors
    # Of the computation; "bfloat16" on TPU and recent GPUs. Weights stay float32. "float32" is that
    # everywhere, several times slower than TPUs and NVIDIA GPUs can: JAX's default for it would be
    # bfloat16's digits in the products there, or TF32's.
    config.model.dtype = "float32"
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
    # LoRA alone: rank r, such as 16; the difference is multiplied by alpha / r, usually 1.
    config.adaptation.lora_rank = config_dict.placeholder(int)
    config.adaptation.lora_alpha = config_dict.placeholder(float)
    # Textual inversion alone: the new word, such as "<lung-xray>", in the captions trained on; a
    # known word that it starts as; tokens of the new word.
    config.adaptation.word = config_dict.placeholder(str)
    config.adaptation.word_like = config_dict.placeholder(str)
    config.adaptation.word_vectors = config_dict.placeholder(int)

    config.data = ConfigDict()
    config.data.source = "phantom"  # "phantom" (synthetic), "folder" or "nih14"
    config.data.path = config_dict.placeholder(str)  # of the images; phantom needs none
    config.data.num_images = 4000  # phantom only
    config.data.phantom_seed = 0  # phantom only
    # phantom only: what may be seen in the pictures, beside nothing at all.
    config.data.phantom_findings = (
        "pleural effusion", "cardiomegaly", "pneumothorax", "nodule",
    )  # fmt: skip
    # Where prepared records and cached latents go; None: <workdir>/data.
    config.data.cache_dir = config_dict.placeholder(str)
    config.data.image_size = 512  # pixels, square
    config.data.resize_mode = "pad"  # "pad" to a square (RoentGen), "crop" its centre, or "squash"
    config.data.validation_fraction = 0.1  # of the patients, where the source names no split
    config.data.batch_size = 8  # images per optimizer step, over all devices and accumulation steps
    # Encode every training image once, in float32, and keep the posterior's moments on disk. Needs
    # a frozen VAE.
    config.data.cache_latents = False
    config.data.num_workers = 2  # threads that decode images

    # The paper's few pictures: so many with a finding and as many without any, one a patient, each
    # with one of two prompts. 0: train on everything, with the data set's own captions.
    config.few_shot = ConfigDict()
    config.few_shot.images_per_prompt = 0
    config.few_shot.label = "pleural_effusion"  # 1 or 0 in the data set
    config.few_shot.prompt_with = "A photo of a lung xray with a visible pleural effusion"
    config.few_shot.prompt_without = "A photo of a lung xray"

    # Prior preservation (DreamBooth, 2208.12242): the loss of pictures that the model itself drew
    # before training, added to that of the data.
    config.prior = ConfigDict()
    config.prior.weight = 0.0  # lambda; 0 switches it off
    # Another model that draws them, for one that cannot draw yet; None: model.path.
    config.prior.path = config_dict.placeholder(str)
    # Of the pictures, in turn: the class that the training captions belong to, and none of them.
    # Under a caption that the data has too, the model would learn a mixture of both.
    config.prior.prompts = ("A photo of an x-ray",)
    # Why prior.prompts may be captions of the data here, in words; None: that is refused.
    config.prior.same_prompts_because = config_dict.placeholder(str)
    config.prior.num_images = 200  # sampled once, kept in data.cache_dir
    config.prior.batch_size = 8  # of them in every optimizer step, beside data.batch_size
    config.prior.seed = 0  # picture i has seed + i
    config.prior.sampler = "ddim"  # a name of diffusion/config.py's SAMPLER_NAMES
    config.prior.num_steps = 50
    config.prior.guidance_scale = 4.0

    config.optim = ConfigDict()
    config.optim.learning_rate = 1e-5
    config.optim.schedule = "constant"  # or "linear" or "cosine", both to 0 at train.steps
    config.optim.warmup_steps = 0  # optimizer steps
    config.optim.b1 = 0.9
    config.optim.b2 = 0.999
    config.optim.eps = 1e-8
    config.optim.weight_decay = 1e-2
    config.optim.clip_norm = 1.0  # largest global gradient norm; 0 switches clipping off
    config.optim.no_decay = ()  # regular expressions of weights that do not decay

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
    config.vae.kl_weight = 1e-6
    # Times the distance in the feature maps of a frozen network, so that texture counts beside grey
    # values (training/perceptual.py); 0 switches it off.
    config.vae.perceptual_weight = 0.0
    # That network: "classifier=FOLDER", "xrv=FILE" or "inception=FILE", as for `evaluate`.
    config.vae.perceptual_features = config_dict.placeholder(str)
    # At the end, set scaling_factor to 1 / std of the latents of the validation images.
    config.vae.measure_scaling_factor = False

    config.mesh = ConfigDict()  # devices along each axis; one may be -1: all that are left
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.log = ConfigDict()
    config.log.every_steps = 10

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 500  # and at the end, and when the run is interrupted
    config.checkpoint.keep = 2

    config.validation = ConfigDict()
    # And at step 0, at the end, and with every evaluation; 0 switches it off.
    config.validation.every_steps = 250
    config.validation.num_images = 64  # the first ones of the validation split
    config.validation.seed = 1  # of the fixed noise

    # Task "diffusion": fixed prompts and seeds, sampled into a picture.
    config.preview = ConfigDict()
    config.preview.every_steps = 500  # and at the end; 0 switches it off
    config.preview.prompts = (
        "A photo of a lung xray",
        "A photo of a lung xray with a visible pleural effusion",
    )
    config.preview.images_per_prompt = 4
    config.preview.seed = 0  # image i of a prompt has seed + i
    config.preview.sampler = "ddim"
    config.preview.num_steps = 50
    config.preview.guidance_scale = 4.0

    # Task "diffusion": metrics of the averaged weights, and the best weights by one of them.
    config.evaluation = ConfigDict()
    config.evaluation.every_steps = 0  # and at the end; 0 switches it off
    # Any of "validation_loss", "prompt_accuracy" and, against the validation split's pictures,
    # "fid", "kid", "precision" and "recall".
    config.evaluation.metrics = ("validation_loss",)
    # The metric by which WORKDIR/best holds the best weights; None: none are kept.
    config.evaluation.keep_best = config_dict.placeholder(str)
    # Feature space of the four distances, as for `evaluate`: "classifier=FOLDER", "inception=FILE".
    config.evaluation.features = config_dict.placeholder(str)
    # Judge of "prompt_accuracy": a folder that train-classifier wrote, and which finding it sees.
    config.evaluation.classifier = config_dict.placeholder(str)
    config.evaluation.label = "pleural_effusion"
    config.evaluation.prompts_with = ("A photo of a lung xray with a visible pleural effusion",)
    config.evaluation.prompts_without = ("A photo of a lung xray",)
    # Pictures sampled for the distances, from captions spread over the validation split; and as
    # many for "prompt_accuracy", half of them with the finding.
    config.evaluation.num_images = 128
    # Of the first picture; picture i has seed + i, in each half of those for "prompt_accuracy".
    config.evaluation.seed = 0
    config.evaluation.sampler = "ddim"
    config.evaluation.num_steps = 50
    config.evaluation.guidance_scale = 4.0

    return config


def get_classifier_config() -> ConfigDict:
    """Everything of `python -m medsd_jax train-classifier`."""
    everything = get_config()
    config = ConfigDict()
    config.seed = 0  # of the initial weights, data order and augmentation

    config.data = everything.data
    del config.data.cache_latents
    config.data.image_size = 224
    config.data.batch_size = 64
    config.labels = (
        "pleural_effusion",
    )  # yes/no labels of the data set; unknown ones cost nothing
    # Share of the training patients that calibrate the probabilities and train nothing.
    config.calibration_fraction = 0.1

    config.network = ConfigDict()  # DenseNet-121; group norm and one grey channel without weights
    config.network.growth_rate = 32
    config.network.block_config = (6, 12, 24, 16)  # layers of each dense block
    config.network.num_init_features = 64
    # Start from the folder of a classifier that was trained here, or from a weight file
    # (.safetensors, .pth or .pt) of torchvision's densenet121 or torchxrayvision's
    # densenet121-res224-*; None: from random weights. The class scores start anew, batch norm keeps
    # its stored statistics. A tenth of the learning rate below is usual.
    config.network.weights = config_dict.placeholder(str)

    config.augmentation = ConfigDict()
    config.augmentation.shift = 0.05  # largest displacement, as a share of the side
    config.augmentation.contrast = 0.15  # grey values times 1 +- this
    config.augmentation.brightness = 0.15  # and moved by at most this, on [-1, 1]

    config.optim = everything.optim
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_steps = 50

    config.train = ConfigDict()
    config.train.steps = 2000
    config.mesh = everything.mesh
    config.log = everything.log
    return config


def get_compare_training_config() -> ConfigDict:
    """Everything of `python -m medsd_jax compare-training`: a classifier's recipe and its data.

    Every arm takes train.steps optimizer steps of data.batch_size pictures.
    """
    config = get_classifier_config()
    config.seeds = 3  # trainings of each arm, with seed, seed + 1, ...
    # Real pictures to train on, of the first patients by their hash; None: all that neither
    # validate nor calibrate.
    config.real_images = config_dict.placeholder(int)

    config.synthetic = ConfigDict()
    # As `evaluate --synthetic`: a folder that sample.py wrote, an image folder with metadata.csv, a
    # .csv of paths, or FOLDER:train of a prepared data set.
    config.synthetic.path = config_dict.required_placeholder(str)
    # CSV with a column prompt and a column (1, 0 or empty) for each label: what the prompts ask
    # for. None: the labels are those of the set's table or, where it has none, what
    # data/findings.py reads in the prompts.
    config.synthetic.labels_by_prompt = config_dict.placeholder(str)

    config.fine_tuning = ConfigDict()  # of the arm that trains on synthetic, then on real pictures
    config.fine_tuning.share = 0.5  # of train.steps, the last ones, on real pictures
    config.fine_tuning.learning_rate = 3e-4  # their largest; optim.schedule starts over with them
    return config


def get_text_projection_config() -> ConfigDict:
    """Everything of `python -m medsd_jax train-projection`."""
    everything = get_config()
    config = ConfigDict()
    config.seed = 0  # of the projection's initial weights and the order of the prompts

    config.model = everything.model  # whose CLIP is imitated, and whose U-Net and VAE are kept
    del config.model.attention
    del config.model.remat
    config.encoder = ConfigDict()
    config.encoder.path = config_dict.required_placeholder(str)  # folder or hub id of a BERT
    config.projection = ConfigDict()
    # Width of the one hidden layer; None: the encoder's.
    config.projection.hidden_features = config_dict.placeholder(int)

    config.data = everything.data
    for name in ("resize_mode", "cache_latents", "num_workers"):
        del config.data[name]
    # A text file with one prompt a line; None: the captions of data.source.
    config.data.prompts = config_dict.placeholder(str)
    # Of the distinct prompts of a file, or of the patients where the source names no split.
    config.data.validation_fraction = 0.1
    config.data.batch_size = 256  # prompts per optimizer step, over all devices

    config.optim = everything.optim
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "cosine"
    config.train = ConfigDict()
    config.train.steps = 1000  # optimizer steps
    config.train.accumulation_steps = 1  # micro-batches per optimizer step
    config.train.ema_decay = 0.0  # moving average of the weights; 0 switches it off
    config.mesh = everything.mesh
    config.log = everything.log
    config.checkpoint = everything.checkpoint
    config.validation = ConfigDict()
    config.validation.every_steps = 250  # and at step 0 and at the end; 0 switches it off
    config.validation.num_prompts = 1000  # the first ones of those that validate
    return config


def get_vae_audit_config() -> ConfigDict:
    """How `python -m medsd_jax evaluate vae` measures."""
    config = ConfigDict()
    # Pictures, spread evenly over the set; None: all.
    config.num_images = config_dict.placeholder(int)
    # Pixels, square; None: of the workdir's recipe, else what the U-Net was made for.
    config.image_size = config_dict.placeholder(int)
    # As data.resize_mode; None: of the workdir's recipe, else "pad".
    config.resize_mode = config_dict.placeholder(str)
    # Means that are good enough: conventions of lossy compression, no medical validation.
    config.least_psnr = 30.0  # decibels
    config.least_ssim = 0.9
    config.batch_size = 4  # on each device
    config.seed = 0  # of the intervals' resamples
    return config


def get_text_probe_config() -> ConfigDict:
    """How `python -m medsd_jax probe-text` measures."""
    config = ConfigDict()
    # How a text becomes one vector: "last", "mean", "cls" or "kth:N"; its --help says more.
    config.pooling = "mean"
    # Keep a BERT's tokens from attending to padding, which the U-Net's context does not.
    config.attention_mask = False
    config.max_length = 77  # tokens of a text for a BERT; a Stable Diffusion model has its own
    # Findings; empty: all labels of the data set that are 1 or 0.
    config.labels = ()
    # Of the patients, who score the probes, where the source names no split.
    config.validation_fraction = 0.3
    config.num_images = config_dict.placeholder(int)  # phantom only; None: 3000
    config.num_resamples = 1000  # of the bootstrap over patients
    config.seed = 0  # of the resamples
    return config


def get_sampling_config() -> ConfigDict:
    """What `python -m medsd_jax evaluate --model` draws before it measures."""
    config = ConfigDict()
    config.prompts = ()  # or give --prompts_csv
    config.num_images = 1  # of each prompt
    config.seed = 0  # of the first image; image i of all has seed + i
    # Image i of each prompt has seed + i: only the prompts tell such images apart.
    config.same_seeds = False
    config.sampler = "ddim"  # a name of diffusion/config.py's SAMPLER_NAMES
    config.num_steps = 50
    config.guidance_scale = 7.5  # 1 is no guidance
    return config
