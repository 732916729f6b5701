"""`medsd-jax demo`: a tiny Stable Diffusion from nothing to a report on two CPU cores."""

import time
from pathlib import Path

from ml_collections import ConfigDict

from medsd_jax.classifier.model import load_classifier
from medsd_jax.config.recipes import load_config
from medsd_jax.data.findings import PAPER_EFFUSION, PAPER_NORMAL
from medsd_jax.evaluation.by_classifier.prompt_adherence import measure_adherence
from medsd_jax.evaluation.reports.classifiers import ClassifierReport
from medsd_jax.interop.train_tokenizer import train_clip_tokenizer
from medsd_jax.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from medsd_jax.models.scratch import random_model
from medsd_jax.reports.writing import read_report
from medsd_jax.studies.demo import report as demo_report
from medsd_jax.workflows.models import load, save
from medsd_jax.workflows.sample import sample
from medsd_jax.workflows.train.data import open_data
from medsd_jax.workflows.train.run import train
from medsd_jax.workflows.train_classifier import REPORT, train_classifier
from medsd_jax.workflows.workdir import working_in

LABEL = "pleural_effusion"
PAIRS = 24
"""Images from the same seeds with both prompts: seeds 0 to 23."""
CLASSIFIED = 128
"""Images of each prompt that the classifier looks at, every one from a seed of its own."""
CLASSIFIED_SEEDS = {PAPER_NORMAL: 1000, PAPER_EFFUSION: 2000}
"""First seed of the classified images of each prompt."""


def run_demo(
    output: Path,
    *,
    vae_steps: int | None = None,
    steps: int | None = None,
    classifier_steps: int | None = None,
    num_classified: int = CLASSIFIED,
    configs: Path | None = None,
) -> None:
    """Trains, samples, measures and exports a tiny Stable Diffusion, and reports.

    A stage that is done already is kept, so that an interrupted demo goes on.

    Args:
        output: the folder of everything.
        vae_steps: of the VAE's training, instead of its recipe's, for a quick look.
        steps: likewise of the U-Net and the text encoder.
        classifier_steps: likewise of the classifier.
        num_classified: images of each prompt that the classifier looks at.
        configs: folder of the recipes, instead of the project's.

    Raises:
        UserError: another demo works in the folder, or a file there cannot be read.
    """
    with working_in(output, "a demo"):
        began = time.perf_counter()
        seconds: dict[str, float] = {}

        def recipe(name: str, model: Path | None, steps: int | None) -> ConfigDict:
            config = load_config(name, configs)
            if model is not None:
                config.model.path = str(model)
            config.data.cache_dir = str(output / "data")
            if steps is not None:
                config.train.steps = steps
                config.optim.warmup_steps = min(config.optim.warmup_steps, steps // 10)
            return config.lock()

        def stage(name: str, title: str) -> None:
            nonlocal began
            now = time.perf_counter()
            seconds[name], began = now - began, now
            print(f"[demo] {title}: {seconds[name]:.0f} s", flush=True)

        untrained, vae, model = output / "untrained", output / "vae", output / "model"
        classifier = output / "classifier"
        if not (untrained / "model_index.json").exists():
            make_untrained(untrained, recipe("demo_vae", untrained, vae_steps))
        stage("prepare", "phantoms, tokenizer and random weights")
        if not (vae / "model" / "model_index.json").exists():
            train(recipe("demo_vae", untrained, vae_steps), vae)
        stage("vae", "VAE trained")
        if not (model / "model_index.json").exists():
            train(recipe("demo", vae, steps), output)
        stage("diffusion", "text encoder and U-Net trained")

        if not (classifier / REPORT).exists():
            train_classifier(recipe("demo_classifier", None, classifier_steps), classifier)
        again = f"remove {classifier}: the demo trains again"
        classifier_scores = read_report(classifier / REPORT, ClassifierReport, again).labels[LABEL]
        stage("classifier", "classifier trained on phantoms")

        trained = load(model)
        both = (PAPER_NORMAL, PAPER_EFFUSION)
        prompts = [p for p in both for _ in range(PAIRS)] + [
            p for p in both for _ in range(num_classified)
        ]
        seeds = [*range(PAIRS)] * 2 + [
            CLASSIFIED_SEEDS[p] + i for p in both for i in range(num_classified)
        ]
        images = sample(trained, prompts, seeds=seeds, num_steps=50, guidance_scale=4.0)
        stage("sample", f"{len(images)} images sampled")
        shown, classified = images[: 2 * PAIRS], images[2 * PAIRS :]
        predictions = measure_adherence(
            load_classifier(classifier), LABEL, classified, prompts[2 * PAIRS :],
            [p == PAPER_EFFUSION for p in prompts[2 * PAIRS :]],
        )  # fmt: skip
        stage("classify", f"{len(classified)} images classified")
        save(trained, output / "export", dtype="float32")
        stage("export", "exported")
        demo_report.write(
            output, shown[:PAIRS], shown[PAIRS:], both, trained, seconds,
            demo_report.Classified(predictions, classified, classifier_scores),
        )  # fmt: skip
        accuracy = predictions.share()
        print(
            f"[demo] the classifier agrees with the prompt in {accuracy:.1%} of {accuracy.n} images"
        )
        print(f"[demo] open {output / 'report.html'}")


def make_untrained(folder: Path, config) -> None:
    """Writes a model of the demo's shapes: random weights, a tokenizer learnt from the captions."""
    captions = open_data(config, folder).train.texts
    tokenizer = train_clip_tokenizer(captions, num_merges=600)
    width = 96
    levels = 2
    unet = UNetConfig(
        sample_size=8,
        block_out_channels=(96, 160),
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=width,
        norm_num_groups=16,
    )
    vae = VAEConfig(
        sample_size=64,
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
    )
    text_encoder = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    scheduler = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
    }
    save(random_model(unet, vae, text_encoder, scheduler, tokenizer, 0), folder)
