"""``medsd-jax probe-text``: what do text encoders know of the findings in a text?"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from medsd_jax.config.ranges import check_ranges
from medsd_jax.errors import UserError

if TYPE_CHECKING:
    from medsd_jax.data.dataset import Dataset
    from medsd_jax.evaluation.reports.text_probe import TextProbeReport
    from medsd_jax.models.text_encoder import LoadedTextEncoder

REPORT = "report.json"


def check_config(config: ConfigDict) -> None:
    """Raises UserError where a value makes no sense."""
    from medsd_jax.evaluation.text.embeddings import parse_pooling

    parse_pooling(config.pooling)
    check_ranges(config)


def probe_encoders(
    config: ConfigDict,
    encoders: Mapping[str, str],
    data: tuple[str, str | None],
    output: Path,
    *,
    cache_dir: Path,
) -> "TextProbeReport":
    """Embeds a data set's captions with every encoder, probes the embeddings, writes report.json.

    Args:
        config: by `medsd_jax.config.text_probe_config`.
        encoders: name in the report -> folder or hub id.
        data: kind and folder of the data set, as the flags name them; its training patients fit,
            its validation patients score.
        output: a folder; made where it is missing.
        cache_dir: for the prepared data set.

    Returns:
        What report.json holds.

    Raises:
        UserError: an encoder cannot be read, there is no label to probe for, or nobody to score.
    """
    from medsd_jax.data.dataset import open_dataset
    from medsd_jax.evaluation.text.embeddings import check_pooling, parse_pooling
    from medsd_jax.files import check_permission
    from medsd_jax.interop.any_text_encoder import load_text_encoder
    from medsd_jax.models.bert_config import BertTextConfig
    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.reports.writing import write_report

    check_permission(output)
    loaded = {
        name: load_text_encoder(where, max_length=config.max_length)
        for name, where in encoders.items()
    }
    for name, encoder in loaded.items():
        check_pooling(encoder, parse_pooling(config.pooling), name)
    has_bert = any(isinstance(encoder.config, BertTextConfig) for encoder in loaded.values())
    if config.attention_mask and not has_bert:
        raise UserError("attention_mask = True is for BERT encoders, and none is among them")
    dataset = open_dataset(
        *data,
        params={} if config.num_images is None else {"num_images": config.num_images},
        cache_dir=cache_dir,
        validation_fraction=config.validation_fraction,
    )
    report = _probe(config, loaded, dataset)
    if is_main_process():
        write_report(output / REPORT, report)
    return report


def _probe(
    config: ConfigDict, encoders: Mapping[str, "LoadedTextEncoder"], dataset: "Dataset"
) -> "TextProbeReport":
    """The report."""
    from medsd_jax.evaluation.reports.text_probe import (
        ProbedData,
        ProbedEncoder,
        TextProbeReport,
        Texts,
    )
    from medsd_jax.evaluation.text.embeddings import embed_texts, parse_pooling
    from medsd_jax.evaluation.text.probe import Group, probe
    from medsd_jax.models.stable_diffusion import weights_fingerprint
    from medsd_jax.reports.writing import package_versions
    from medsd_jax.workflows.classifier_recipe import targets_of

    splits = (dataset.train, dataset.validation)
    if not all(len(split) for split in splits):
        raise UserError("a group of the data set is empty: change validation_fraction")
    names = list(config.labels or _yes_no_labels(dataset))
    if not names:
        raise UserError("the data set has no label with both 1 and 0: there is nothing to probe")
    groups = [Group(targets_of(split, names).astype(float), split.patient_ids) for split in splits]
    how = parse_pooling(config.pooling)
    embeddings = {}
    for name, encoder in encoders.items():
        texts = [*dataset.train.texts, *dataset.validation.texts]
        vectors = embed_texts(
            encoder, texts, how, attention_mask=config.attention_mask, progress=True
        )
        embeddings[name] = (vectors[: len(dataset.train)], vectors[len(dataset.train) :])
    result = probe(names, *groups, embeddings, num_resamples=config.num_resamples, seed=config.seed)
    return TextProbeReport(
        versions=package_versions(),
        data=ProbedData(
            source=dataset.info.source,
            fingerprint=dataset.info.fingerprint,
            **{
                split.name: Texts(
                    num_texts=len(split),
                    num_distinct_texts=len(set(split.texts)),
                    num_patients=len(set(split.patient_ids)),
                )
                for split in splits
            },
        ),
        pooling=config.pooling,
        attention_mask=config.attention_mask,
        num_resamples=config.num_resamples,
        seed=config.seed,
        encoders=tuple(
            ProbedEncoder(
                name=name,
                architecture=type(encoder.config).__name__.removesuffix("TextConfig"),
                weights_hash=weights_fingerprint(encoder.params),
                width=embeddings[name][0].shape[1],
                max_length=encoder.tokenizer.model_max_length,
                labels=result.labels[name],
                strengths=result.strengths[name],
            )
            for name, encoder in encoders.items()
        ),
        differences=result.differences,
    )


def in_words(report: "TextProbeReport") -> str:
    """A table: AUROC and F1 by finding and encoder, then the differences."""
    names = list(report.encoders[0].labels)
    width = max(len(name) for name in names) + 2
    lines = []
    for entry in report.encoders:
        lines.append(f"{entry.name} ({entry.architecture}, {entry.width} wide)")
        for name in names:
            scores = entry.labels[name]
            numbers = "too few texts with it, or without"
            if not scores.too_few:
                numbers = f"auroc {scores.auroc:z.3f}, f1 {scores.f1:z.3f}"  # no "-0.000"
            counts = f"{scores.num_present:5} of {scores.num_images}"
            lines.append(f"  {name:{width}}{counts}  {numbers}")
    for entry in report.differences:
        lines.append(f"{entry.encoder} minus {entry.minus}")
        for name, scores in entry.labels.items():
            lines.append(f"  {name:{width}}auroc {scores.auroc:+z.3f}, f1 {scores.f1:+z.3f}")
    return "\n".join(lines)


def _yes_no_labels(dataset: "Dataset") -> list[str]:
    rows = [*dataset.train.labels, *dataset.validation.labels]
    values = {name: {row[name] for row in rows if row.get(name, "") != ""} for name in
              dataset.info.label_names}  # fmt: skip
    return [name for name, result in values.items() if result == {0, 1}]
