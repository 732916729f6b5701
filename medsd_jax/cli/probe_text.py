"""``python -m medsd_jax probe-text``: what do text encoders know of the findings in a text?"""

import argparse
import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from medsd_jax.cli.config_ranges import check_ranges
from medsd_jax.cli.flags import positive_int
from medsd_jax.cli.hosts import add_host_flags, host_flags
from medsd_jax.cli.recipes import add_recipe_flag, base_config, settings_of
from medsd_jax.errors import UserError

if TYPE_CHECKING:
    from medsd_jax.data.dataset import Dataset
    from medsd_jax.interop.text_encoder_dir import LoadedTextEncoder

REPORT = "report.json"
BASE, RECIPE = "get_text_probe_config", "configs/text_probe.py"

_EPILOG = """examples:
  python -m medsd_jax probe-text --encoder CompVis/stable-diffusion-v1-4 \\
      --encoder StanfordAIMI/RadBERT --source folder --path my_images --output runs/probe \\
      --config configs/text_probe.py
  python -m medsd_jax probe-text --encoder models/radbert --encoder runs/radbert \\
      --source folder --path my_images --output runs/probe

The second line asks what fine-tuning did to an encoder: before it, and after. Texts are the
captions of the data set, findings its labels with 1 and 0. A hyperplane is fitted on the training
patients' texts and scored on the validation patients'. Where captions are made from the labels, as
for nih14, any encoder finds them: a text must say more than its labels for this to measure much.

--pooling: how a text becomes one vector
  last    mean of the last hidden state over all positions, padding included, as the U-Net sees it
  mean    mean of the last hidden state over the text's tokens
  cls     the last hidden state at [CLS] of a BERT, at the end of the text of CLIP
  kth:N   as mean, of the N-th hidden state from the last"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``probe-text``."""
    parser = subparsers.add_parser(
        "probe-text",
        help="measure what text encoders know of the findings in a text",
        description="Linear probes of text encoders: AUROC, accuracy and F1 of each finding read\n"
        "from the text's embedding, and paired differences between encoders.",
        epilog=_EPILOG,
    )
    default = base_config(BASE)
    add_host_flags(parser)
    add = parser.add_argument
    add(
        "--encoder", required=True, action="append", metavar="X",
        help="a BERT (folder or hub id), or a Stable Diffusion model (folder, workdir or hub id); "
        "may be repeated",
    )  # fmt: skip
    add("--source", required=True, metavar="KIND", help="kind of data: phantom, folder, nih14")
    add("--path", metavar="DIR", help="folder of the images; phantom needs none")
    add("--output", required=True, type=Path, metavar="DIR", help=f"gets {REPORT} and the data")
    add_recipe_flag(parser, RECIPE)
    add(
        "--label", action="append", dest="labels", metavar="L",
        help="a finding; may be repeated (default: all labels that are 1 or 0)",
    )  # fmt: skip
    add("--pooling", metavar="P", help=f"last, mean, cls or kth:N (default {default.pooling})")
    add(
        "--attention_mask", action=argparse.BooleanOptionalAction,
        help="keep a BERT's tokens from attending to padding, which the U-Net's context does not",
    )  # fmt: skip
    add(
        "--max_length", type=positive_int, metavar="S",
        help=f"tokens of a text for a BERT (default {default.max_length}); a model has its own",
    )  # fmt: skip
    add(
        "--validation_fraction", type=float, metavar="F",
        help="share of the patients that score, where the source names no split "
        f"(default {default.validation_fraction})",
    )  # fmt: skip
    add("--num_images", type=positive_int, metavar="N", help="phantom: how many (default 3000)")
    add(
        "--num_resamples", type=positive_int, metavar="R",
        help=f"of the intervals (default {default.num_resamples})",
    )  # fmt: skip
    add("--seed", type=int, help=f"of the resamples (default {default.seed})")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.cli.workdir import working_in
    from medsd_jax.parallel.multihost import is_main_process

    if len(set(args.encoder)) < len(args.encoder):
        raise UserError("an --encoder is named twice; leave one out")
    config = settings_of(args, BASE, RECIPE)
    check_config(config)
    if config.num_images is not None and args.source != "phantom":
        raise UserError(f"num_images = {config.num_images} is for --source phantom: leave it out")
    start_devices(host_flags(args))
    with working_in(args.output, "an evaluation"):
        report = probe_encoders(
            config,
            {name: name for name in args.encoder},
            (args.source, args.path),
            args.output,
            cache_dir=args.output / "data",
        )
    if is_main_process():
        print(in_words(report))
        print(f"all numbers are in {args.output / REPORT}")
    return 0


def check_config(config: ConfigDict) -> None:
    """Raises UserError where a value makes no sense."""
    from medsd_jax.evaluation.text_embeddings import parse_pooling

    parse_pooling(config.pooling)
    check_ranges(config)


def schema() -> dict[str, Any]:
    """The JSON schema of report.json, which says what every key means."""
    file = importlib.resources.files("medsd_jax.cli") / "templates" / "probe_text.schema.json"
    return json.loads(file.read_text(encoding="utf-8"))


def probe_encoders(
    config: ConfigDict,
    encoders: Mapping[str, str],
    data: tuple[str, str | None],
    output: Path,
    *,
    cache_dir: Path,
) -> dict[str, Any]:
    """Embeds a data set's captions with every encoder, probes the embeddings, writes report.json.

    Args:
        config: by `configs.base.get_text_probe_config`.
        encoders: name in the report -> folder or hub id.
        data: kind and folder of the data set, as the flags name them; its training patients fit,
            its validation patients score.
        output: a folder; made where it is missing.
        cache_dir: for the prepared data set.

    Returns:
        What report.json holds, as its schema says.

    Raises:
        UserError: an encoder cannot be read, there is no label to probe for, or nobody to score.
    """
    import jsonschema

    from medsd_jax.data.dataset import open_dataset
    from medsd_jax.evaluation.text_embeddings import check_pooling, parse_pooling
    from medsd_jax.files import check_permission, write_json
    from medsd_jax.interop.any_text_encoder import load_text_encoder
    from medsd_jax.models.bert_config import BertTextConfig
    from medsd_jax.parallel.multihost import is_main_process

    check_permission(output)
    loaded = {
        name: load_text_encoder(where, max_length=config.max_length)
        for name, where in encoders.items()
    }
    for name, encoder in loaded.items():
        check_pooling(encoder, parse_pooling(config.pooling), name)
    has_bert = any(isinstance(encoder.config, BertTextConfig) for encoder in loaded.values())
    if config.attention_mask and not has_bert:
        raise UserError("--attention_mask is for BERT encoders, and none is among them")
    dataset = open_dataset(
        *data,
        params={} if config.num_images is None else {"num_images": config.num_images},
        cache_dir=cache_dir,
        validation_fraction=config.validation_fraction,
    )
    report = _probe(config, loaded, dataset)
    jsonschema.validate(report, schema())
    if is_main_process():
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / REPORT, report)
    return report


def _probe(
    config: ConfigDict, encoders: Mapping[str, "LoadedTextEncoder"], dataset: "Dataset"
) -> dict[str, Any]:
    """The report."""
    from medsd_jax.cli.classifier_recipe import targets_of
    from medsd_jax.evaluation.text_embeddings import embed_texts, parse_pooling
    from medsd_jax.evaluation.text_probe import Side, probe

    splits = (dataset.train, dataset.validation)
    if not all(len(split) for split in splits):
        raise UserError("a side of the data set is empty: change --validation_fraction")
    names = list(config.labels or _yes_no_labels(dataset))
    if not names:
        raise UserError("the data set has no label with both 1 and 0: there is nothing to probe")
    sides = [Side(targets_of(split, names).astype(float), split.patient_ids) for split in splits]
    how = parse_pooling(config.pooling)
    embeddings, about = {}, []
    for name, encoder in encoders.items():
        texts = [*dataset.train.texts, *dataset.validation.texts]
        vectors = embed_texts(
            encoder, texts, how, attention_mask=config.attention_mask, progress=True
        )
        embeddings[name] = (vectors[: len(dataset.train)], vectors[len(dataset.train) :])
        about.append(
            {
                "name": name,
                "class": type(encoder.config).__name__.removesuffix("TextConfig"),
                "weights_hash": _fingerprint(encoder.params),
                "width": vectors.shape[1],
                "max_length": encoder.tokenizer.model_max_length,
            }
        )
    found = probe(names, *sides, embeddings, num_resamples=config.num_resamples, seed=config.seed)
    for entry in about:
        entry["labels"] = found["labels"][entry["name"]]
    return {
        "data": {
            "source": dataset.info.source,
            "fingerprint": dataset.info.fingerprint,
            **{
                split.name: {
                    "num_texts": len(split),
                    "num_distinct_texts": len(set(split.texts)),
                    "num_patients": len(set(split.patient_ids)),
                }
                for split in splits
            },
        },
        "pooling": config.pooling,
        "attention_mask": config.attention_mask,
        "num_resamples": config.num_resamples,
        "seed": config.seed,
        "encoders": about,
        "differences": found["differences"],
    }


def in_words(report: dict[str, Any]) -> str:
    """A table: AUROC and F1 by finding and encoder, then the differences."""
    names = list(report["encoders"][0]["labels"])
    width = max(len(name) for name in names) + 2
    lines = []
    for entry in report["encoders"]:
        lines.append(f"{entry['name']} ({entry['class']}, {entry['width']} wide)")
        for name in names:
            scores = entry["labels"][name]
            numbers = (
                "too few texts with it, or without"
                if scores.get("too_few")
                else ", ".join(f"{key} {_interval(scores[key])}" for key in ("auroc", "f1"))
            )
            counts = f"{scores['num_present']:5} of {scores['num_images']}"
            lines.append(f"  {name:{width}}{counts}  {numbers}")
    for entry in report["differences"]:
        lines.append(f"{entry['encoder']} minus {entry['minus']}")
        for name, scores in entry["labels"].items():
            numbers = ", ".join(f"{key} {_interval(scores[key], '+')}" for key in ("auroc", "f1"))
            lines.append(f"  {name:{width}}{numbers}")
    return "\n".join(lines)


def _interval(estimate: dict[str, Any], sign: str = "") -> str:
    low, high = estimate["ci95"]
    said = f"{sign}z.3f"  # no "-0.000"
    return f"{estimate['value']:{said}} ({low:{said}} to {high:{said}})"


def _yes_no_labels(dataset: "Dataset") -> list[str]:
    rows = [*dataset.train.labels, *dataset.validation.labels]
    values = {name: {row[name] for row in rows if row.get(name, "") != ""} for name in
              dataset.info.label_names}  # fmt: skip
    return [name for name, found in values.items() if found == {0, 1}]


def _fingerprint(params: Mapping[str, np.ndarray]) -> str:
    """16 hex digits that change with any bit of any weight of the encoder."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(params):
        digest.update(name.encode() + np.ascontiguousarray(params[name]).tobytes())
    return digest.hexdigest()
