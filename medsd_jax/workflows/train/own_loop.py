"""The train step for a loop of one's own: batches of images and prompts in, a model out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from medsd_jax.adaptation.adaptation import Adaptation, frozen_params
from medsd_jax.adaptation.full import full
from medsd_jax.arrays import Params
from medsd_jax.errors import UserError
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.parallel.mesh import make_mesh, put_batch
from medsd_jax.parallel.multihost import on_every_host, put_global
from medsd_jax.training.sharded_step import shard_step
from medsd_jax.training.state import TrainState, init_state
from medsd_jax.training.step import make_train_step
from medsd_jax.workflows.train.steps import make_diffusion_model


@dataclass(frozen=True)
class Training:
    """What a loop needs.

    Attributes:
        step: ``(state, frozen, batch, rng) -> (state, metrics)``, jitted; the state is donated. The
            step's number is folded into the key, so that one key serves a whole run.
        state: of step 0.
        frozen: the weights that are not trained, on the devices.
        mesh: where they lie.
    """

    step: Callable
    state: TrainState
    frozen: Params
    mesh: Mesh
    _model: StableDiffusion
    _adaptation: Adaptation

    def batch(self, images: np.ndarray, prompts: Sequence[str]) -> dict[str, jax.Array]:
        """A batch on the devices.

        Args:
            images: [B, H, W, 3] uint8, H and W multiples of the VAE's downscaling.
            prompts: B texts.

        Raises:
            UserError: images and prompts do not fit together, or the devices cannot share them.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UserError(
                f"images are {images.dtype} {list(images.shape)}, not uint8 [B, H, W, 3]"
            )
        if len(prompts) != len(images):
            raise UserError(f"{len(images)} images need as many prompts, not {len(prompts)}")
        ids = encode_prompts(self._model.tokenizer, list(prompts))
        return put_batch({"images": images, "prompt_ids": ids}, self.mesh)

    def model(self, state: TrainState) -> StableDiffusion:
        """The model with what was trained; the moving average where there is one."""
        trained = on_every_host(state.averaged)
        params = self._adaptation.apply(frozen_params(self._model.params, trained), trained)
        return replace(self._model, params=params)


def prepare_training(
    model: StableDiffusion,
    optimizer: optax.GradientTransformation,
    *,
    adaptation: Adaptation | None = None,
    caption_dropout: float = 0.1,
    min_snr_gamma: float | None = None,
    accumulation_steps: int = 1,
    ema_decay: float = 0.0,
    dtype: str = "float32",
    attention: str = "auto",
    remat: bool = False,
    mesh: Mesh | None = None,
    seed: int = 0,
) -> Training:
    """Puts a model on the devices and compiles nothing yet.

    Args:
        model: from `load`, weights on the host.
        optimizer: optax's.
        adaptation: what is trained, such as `adaptation.full.full` or `adaptation.lora.lora` gives;
            the whole U-Net if None.
        caption_dropout: share of prompts replaced by the empty one; guidance needs some.
        min_snr_gamma: of min-SNR loss weights; off if None.
        accumulation_steps: micro-batches per optimizer step.
        ema_decay: of the moving average of what is trained; 0 switches it off.
        dtype: of the computation.
        attention: implementation of the U-Net's attention.
        remat: recompute the U-Net's blocks in the backward pass.
        mesh: device mesh; all devices along "data" if None.
        seed: of what an adaptation draws, such as a LoRA's matrices.

    Raises:
        UserError: the adaptation matches no weight, or a name is not known.
    """
    adaptation = full((r"^unet\.",)) if adaptation is None else adaptation
    mesh = make_mesh({"data": -1}) if mesh is None else mesh
    train_step = make_train_step(
        make_diffusion_model(model, dtype=dtype, attention=attention, remat=remat),
        adaptation,
        optimizer,
        empty_prompt_ids=encode_prompts(model.tokenizer, [""])[0],
        caption_dropout=caption_dropout,
        min_snr_gamma=min_snr_gamma,
        accumulation_steps=accumulation_steps,
        ema_decay=ema_decay,
    )
    trainable = adaptation.init(model.params, jax.random.key(seed + 1))
    frozen = frozen_params(model.params, trainable)

    def first_state(trainable: Params) -> TrainState:
        return init_state(trainable, optimizer, ema=ema_decay > 0)

    sharded = shard_step(train_step, jax.eval_shape(first_state, trainable), frozen, mesh)
    # Donated, so that the weights are not on the devices twice.
    start = jax.jit(first_state, out_shardings=sharded.state, donate_argnums=0)
    state = start(put_global(trainable, sharded.state.trainable))
    return Training(
        sharded.step, state, put_global(frozen, sharded.frozen), mesh, model, adaptation
    )
