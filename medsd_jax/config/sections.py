"""Sections that several configs have alike. Each function adds one to a config."""

from ml_collections import ConfigDict, config_dict


def add_model(config: ConfigDict) -> None:
    """The Stable Diffusion model that a run starts from."""
    config.model = ConfigDict()
    # A diffusers folder, a hub id, or the workdir of an earlier run. Shapes are its config.json's.
    config.model.path = config_dict.required_placeholder(str)
    config.model.variant = config_dict.placeholder(str)  # "fp16" reads *.fp16.safetensors
    # Of the computation; "bfloat16" on TPU and recent GPUs. Weights stay float32. "float32" is that
    # everywhere, several times slower than TPUs and NVIDIA GPUs can: JAX's default for it would be
    # bfloat16's digits in the products there, or TF32's.
    config.model.dtype = "float32"


def add_data(config: ConfigDict) -> None:
    """A data set, and how much of it an optimizer step takes."""
    config.data = ConfigDict()
    config.data.source = "phantom"  # "phantom" (synthetic), "folder" or "nih14"
    config.data.path = config_dict.placeholder(str)  # of the images; phantom needs none
    config.data.num_images = 4000  # phantom only
    config.data.phantom_seed = 0  # phantom only
    # phantom only: what may be seen in the images, beside nothing at all.
    config.data.phantom_findings = (
        "pleural effusion", "cardiomegaly", "pneumothorax", "nodule",
    )  # fmt: skip
    # Where prepared records and cached latents go; None: <workdir>/data.
    config.data.cache_dir = config_dict.placeholder(str)
    config.data.image_size = 512  # pixels, square
    config.data.validation_fraction = 0.1  # of the patients, where the source names no split
    config.data.batch_size = 8  # images per optimizer step, over all devices and accumulation steps


def add_optim(config: ConfigDict) -> None:
    """AdamW and its learning rate."""
    config.optim = ConfigDict()
    config.optim.learning_rate = 1e-5  # the largest of the schedule
    config.optim.schedule = "constant"  # or "linear" or "cosine", both to 0 at train.steps
    config.optim.warmup_steps = 0  # optimizer steps
    config.optim.b1 = 0.9  # of AdamW: decay of the mean of the gradients
    config.optim.b2 = 0.999  # of AdamW: decay of the mean of their squares
    config.optim.eps = 1e-8  # of AdamW: added to the denominator
    # Decoupled, as AdamW has it: times the learning rate at each step.
    config.optim.weight_decay = 1e-2
    config.optim.clip_norm = 1.0  # largest global gradient norm; 0 switches clipping off
    config.optim.no_decay = ()  # regular expressions of weights that do not decay


def add_mesh(config: ConfigDict) -> None:
    """The device mesh."""
    config.mesh = ConfigDict()  # devices along each axis; one may be -1: all that are left
    config.mesh.data = -1  # copies of the model, each with its part of the batch
    config.mesh.fsdp = 1  # shards of the weights and of the batch
    config.mesh.tensor = 1  # shards of the matrices inside a layer


def add_log(config: ConfigDict) -> None:
    """How often scalars are written."""
    config.log = ConfigDict()
    config.log.every_steps = 10  # optimizer steps between two rows of metrics.jsonl


def add_checkpoint(config: ConfigDict) -> None:
    """When checkpoints are written."""
    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 500  # and at the end, and when the run is interrupted
    config.checkpoint.keep = 2  # the newest ones; older ones are deleted


def add_sampling(section: ConfigDict, guidance_scale: float) -> None:
    """How images are sampled, in a section of its own or in a config of little else."""
    section.sampler = "ddim"  # a name of diffusion/config.py's SAMPLER_NAMES
    section.num_steps = 50  # of the sampler
    section.guidance_scale = guidance_scale  # 1 is no guidance
