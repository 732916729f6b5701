"""``python -m medsd_jax probe-text``: what do text encoders know of the findings in a text?"""

import argparse
import hashlib
import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medsd_jax.cli.flags import check_seed, positive_int
from medsd_jax.errors import UserError

if TYPE_CHECKING:
    from medsd_jax.data.dataset import Dataset
    from medsd_jax.interop.text_encoder_dir import LoadedTextEncoder

REPORT = "report.json"
POOLING = "mean"
MAX_LENGTH = 77
VALIDATION_FRACTION = 0.3
NUM_RESAMPLES = 1000

_EPILOG = """examples:
  python -m medsd_jax probe-text --encoder CompVis/stable-diffusion-v1-4 \\
      --encoder StanfordAIMI/RadBERT --source folder --path my_images --output runs/probe
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
    add = parser.add_argument
    add(
        "--encoder", required=True, action="append", metavar="X",
        help="a BERT (folder or hub id), or a Stable Diffusion model (folder, workdir or hub id); "
        "may be repeated",
    )  # fmt: skip
    add("--source", required=True, metavar="KIND", help="kind of data: phantom, folder, nih14")
    add("--path", metavar="DIR", help="folder of the images; phantom needs none")
    add("--output", required=True, type=Path, metavar="DIR", help=f"gets {REPORT} and the data")
    add(
        "--label", action="append", metavar="L",
        help="a finding; may be repeated (default: all labels that are 1 or 0)",
    )  # fmt: skip
    add("--pooling", default=POOLING, metavar="P", help="last, mean, cls or kth:N (default mean)")
    add(
        "--attention_mask", action="store_true",
        help="keep a BERT's tokens from attending to padding, which the U-Net's context does not",
    )  # fmt: skip
    add(
        "--max_length", type=positive_int, default=MAX_LENGTH, metavar="S",
        help="tokens of a text for a BERT (default 77); a model has its own",
    )  # fmt: skip
    add(
        "--validation_fraction", type=float, default=VALIDATION_FRACTION, metavar="F",
        help="share of the patients that score, where the source names no split (default 0.3)",
    )  # fmt: skip
    add("--num_images", type=positive_int, metavar="N", help="phantom: how many (default 3000)")
    add(
        "--num_resamples",
        type=positive_int,
        default=NUM_RESAMPLES,
        metavar="R",
        help="(default 1000)",
    )
    add("--seed", type=int, default=0, help="of the resamples (default 0)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    import jsonschema

    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.evaluation.text_embeddings import check_pooling, parse_pooling
    from medsd_jax.files import write_json
    from medsd_jax.interop.any_text_encoder import load_text_encoder
    from medsd_jax.models.bert_config import BertTextConfig
    from medsd_jax.parallel.multihost import is_main_process

    if len(set(args.encoder)) < len(args.encoder):
        raise UserError("an --encoder is named twice; leave one out")
    check_seed(args.seed)
    pooling = parse_pooling(args.pooling)
    start_devices()
    encoders = {x: load_text_encoder(x, max_length=args.max_length) for x in args.encoder}
    for name, encoder in encoders.items():
        check_pooling(encoder, pooling, name)
    has_bert = any(isinstance(e.config, BertTextConfig) for e in encoders.values())
    if args.attention_mask and not has_bert:
        raise UserError("--attention_mask is for BERT encoders, and none is among them")
    report = probe_encoders(
        encoders, _open_data(args), labels=args.label, pooling=args.pooling,
        attention_mask=args.attention_mask, num_resamples=args.num_resamples, seed=args.seed,
    )  # fmt: skip
    jsonschema.validate(report, schema())
    if is_main_process():
        args.output.mkdir(parents=True, exist_ok=True)
        write_json(args.output / REPORT, report)
        print(in_words(report))
        print(f"all numbers are in {args.output / REPORT}")
    return 0


def schema() -> dict[str, Any]:
    """The JSON schema of report.json, which says what every key means."""
    file = importlib.resources.files("medsd_jax.cli") / "templates" / "probe_text.schema.json"
    return json.loads(file.read_text(encoding="utf-8"))


def probe_encoders(
    encoders: Mapping[str, "LoadedTextEncoder"],
    dataset: "Dataset",
    *,
    labels: Sequence[str] | None,
    pooling: str,
    attention_mask: bool,
    num_resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Embeds a data set's captions with every encoder and probes the embeddings.

    Args:
        encoders: name -> encoder.
        dataset: its training patients fit, its validation patients score.
        labels: findings; None: every label of the data set whose values are 1 and 0.
        pooling: see `text_embeddings.parse_pooling`.
        attention_mask: of BERTs.
        num_resamples: of the bootstrap.
        seed: likewise.

    Returns:
        The report, as its schema says.

    Raises:
        UserError: there is no label to probe for, or nobody to score.
    """
    from medsd_jax.cli.classifier_recipe import targets_of
    from medsd_jax.evaluation.text_embeddings import embed_texts, parse_pooling
    from medsd_jax.evaluation.text_probe import Side, probe

    splits = (dataset.train, dataset.validation)
    if not all(len(split) for split in splits):
        raise UserError("a side of the data set is empty: change --validation_fraction")
    names = list(labels or _yes_no_labels(dataset))
    if not names:
        raise UserError("the data set has no label with both 1 and 0: there is nothing to probe")
    sides = [Side(targets_of(split, names).astype(float), split.patient_ids) for split in splits]
    how = parse_pooling(pooling)
    embeddings, about = {}, []
    for name, encoder in encoders.items():
        texts = [*dataset.train.texts, *dataset.validation.texts]
        vectors = embed_texts(encoder, texts, how, attention_mask=attention_mask, progress=True)
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
    found = probe(names, *sides, embeddings, num_resamples=num_resamples, seed=seed)
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
        "pooling": pooling,
        "attention_mask": attention_mask,
        "num_resamples": num_resamples,
        "seed": seed,
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


def _open_data(args: argparse.Namespace) -> "Dataset":
    from medsd_jax.data.dataset import open_dataset

    if args.num_images is not None and args.source != "phantom":
        raise UserError("--num_images is for --source phantom; leave it out")
    params = {} if args.num_images is None else {"num_images": args.num_images}
    return open_dataset(
        args.source, args.path, params=params, cache_dir=args.output / "data",
        validation_fraction=args.validation_fraction,
    )  # fmt: skip


def _fingerprint(params: Mapping[str, np.ndarray]) -> str:
    """16 hex digits that change with any bit of any weight of the encoder."""
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(params):
        digest.update(name.encode() + np.ascontiguousarray(params[name]).tobytes())
    return digest.hexdigest()
