"""`python -m medsd_jax demo`: a tiny Stable Diffusion from nothing to a report on two CPU cores."""

import argparse
import logging
import time
from pathlib import Path

from medsd_jax.cli.flags import positive_int

log = logging.getLogger(__name__)

PROMPT = "A photo of a lung xray"
EFFUSION_PROMPT = "A photo of a lung xray with a visible pleural effusion"
LABEL = "pleural_effusion"
PAIRS = 24
"""Pictures from the same seeds with both prompts: seeds 0 to 23."""
JUDGED = 128
"""Pictures of each prompt that the classifier judges, every one from a seed of its own."""
JUDGED_SEEDS = {PROMPT: 1000, EFFUSION_PROMPT: 2000}
"""First seed of the judged pictures of each prompt."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``demo``."""
    parser = subparsers.add_parser(
        "demo",
        help="train a tiny Stable Diffusion on synthetic chest X-rays and report",
        description="Trains VAE, text encoder, U-Net and tokenizer on synthetic chest X-rays from\n"
        "scratch, samples with and without pleural effusion, lets a classifier judge the\n"
        "pictures, exports, writes OUTPUT/report.html.",
        epilog="example: python -m medsd_jax demo --output runs/demo",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="default runs/demo")
    parser.add_argument(
        "--configs",
        type=Path,
        help="folder with demo_vae.py, demo.py and demo_classifier.py (default: the project's)",
    )
    parser.add_argument(
        "--vae_steps", type=positive_int, help="instead of the recipe's: for a quick look"
    )
    parser.add_argument(
        "--steps", type=positive_int, help="instead of the recipe's: for a quick look"
    )
    parser.add_argument("--classifier_steps", type=positive_int, help="likewise")
    parser.add_argument(
        "--judged",
        type=positive_int,
        default=JUDGED,
        metavar="N",
        help=f"pictures a prompt for the classifier (default {JUDGED})",
    )


def run(args: argparse.Namespace) -> int:
    """Runs all stages; a stage that is done already is kept, so an interrupted demo goes on."""
    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.cli.workdir import working_in

    start_devices(alone="demo")
    with working_in(args.output, "a demo"):
        _run_stages(args)
    return 0


def _run_stages(args: argparse.Namespace) -> None:
    from medsd_jax import api
    from medsd_jax.cli import demo_report
    from medsd_jax.cli.recipes import find_configs, load_config
    from medsd_jax.cli.train import train_by_config
    from medsd_jax.cli.train_classifier import REPORT, train_classifier
    from medsd_jax.evaluation.classifier import load_classifier
    from medsd_jax.evaluation.condition import judge_prompts
    from medsd_jax.files import json_object

    began = time.perf_counter()
    output, seconds = args.output, {}

    def recipe(name: str, model: Path | None, steps: int | None):
        config = load_config(find_configs(args.configs) / f"{name}.py")
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
    judge = output / "classifier"
    if not (untrained / "model_index.json").exists():
        make_untrained(untrained, recipe("demo_vae", untrained, args.vae_steps))
    stage("prepare", "phantoms, tokenizer and random weights")
    if not (vae / "model" / "model_index.json").exists():
        train_by_config(recipe("demo_vae", untrained, args.vae_steps), vae)
    stage("vae", "VAE trained")
    if not (model / "model_index.json").exists():
        train_by_config(recipe("demo", vae, args.steps), output)
    stage("diffusion", "text encoder and U-Net trained")

    if not (judge / REPORT).exists():
        train_classifier(recipe("demo_classifier", None, args.classifier_steps), judge)
    with json_object(judge / REPORT, f"remove {judge}: the demo trains again") as report:
        classifier_scores = report["labels"][LABEL]
    stage("classifier", "classifier trained on phantoms")

    trained = api.load(model)
    both = (PROMPT, EFFUSION_PROMPT)
    prompts = [p for p in both for _ in range(PAIRS)] + [
        p for p in both for _ in range(args.judged)
    ]
    seeds = [*range(PAIRS)] * 2 + [JUDGED_SEEDS[p] + i for p in both for i in range(args.judged)]
    images = api.sample(trained, prompts, seeds=seeds, num_steps=50, guidance_scale=4.0)
    stage("sample", f"{len(images)} pictures sampled")
    shown, judged = images[: 2 * PAIRS], images[2 * PAIRS :]
    judgement = judge_prompts(
        load_classifier(judge), LABEL, judged, prompts[2 * PAIRS :],
        [p == EFFUSION_PROMPT for p in prompts[2 * PAIRS :]],
    )  # fmt: skip
    stage("judge", f"{len(judged)} pictures judged")
    api.save(trained, output / "export", dtype="float32")
    stage("export", "exported")
    demo_report.write(
        output, shown[:PAIRS], shown[PAIRS:], both, trained, seconds,
        demo_report.Verdict(judgement, judged, classifier_scores),
    )  # fmt: skip
    accuracy = judgement.to_dict()["prompt_accuracy"]
    print(
        f"[demo] the classifier agrees with the prompt in {accuracy['value']:.1%} of "
        f"{accuracy['n']} pictures ({accuracy['ci95'][0]:.1%} to {accuracy['ci95'][1]:.1%})"
    )
    print(f"[demo] open {output / 'report.html'}")


def make_untrained(folder: Path, config) -> None:
    """Writes a model of the demo's shapes: random weights, a tokenizer learnt from the captions."""
    from medsd_jax import api
    from medsd_jax.cli.train_data import open_data
    from medsd_jax.interop.train_tokenizer import train_clip_tokenizer
    from medsd_jax.models.config import CLIPTextConfig, UNetConfig, VAEConfig
    from medsd_jax.models.scratch import random_model

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
    api.save(random_model(unet, vae, text_encoder, scheduler, tokenizer, 0), folder)
