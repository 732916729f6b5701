"""What each image of a set is said to show: its table's labels, else the words of its prompt.

Where neither is to be believed, a table of prompts decides. It may be the --prompts_csv that
sample.py drew from; negative_prompt, seed, id, age and the like are no labels:

    prompt,pleural_effusion,cardiomegaly
    Chest X-ray. Small effusion.,1,0
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medsd_jax.data.findings import findings_in
from medsd_jax.data.labels import NO_FINDINGS, TRAIT_COLUMNS, NotAFinding, finding, label_name
from medsd_jax.data.sources.tables import read_csv
from medsd_jax.errors import UserError
from medsd_jax.evaluation.images.image_sets import ImageSet

_PROMPTS_LISTED = 20


def known_labels(images: ImageSet) -> list[Mapping[str, Any]]:
    """Labels of every image of a set, see `labels_or_words`."""
    return labels_or_words(images.texts, images.labels)


def labels_or_words(
    texts: Sequence[str], labels: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Labels of every image from its prompt and from its table.

    A table that has findings is believed, and its captions are not read beside it: a caption does
    not say everything. Where no image of the set has a finding's label, the words of the prompts
    decide (data/findings.py).

    Args:
        texts: [n] prompts or captions, "" where none is known.
        labels: [n] label -> value, of the table.

    Returns:
        [n] label -> value: findings 1 or 0, sex, age in years, view.
    """
    if any(name not in TRAIT_COLUMNS for row in labels for name in row):
        return list(labels)
    return [
        {**(findings_in(text) if text else {}), **row}
        for text, row in zip(texts, labels, strict=True)
    ]


def labels_by_prompt(images: ImageSet, table: Path) -> list[Mapping[str, Any]]:
    """Labels of every image by a table of prompts; see the module.

    Args:
        images: with the prompts as their texts.
        table: CSV with a column prompt and a column for each finding: 1, 0, or empty or -1 where
            the prompt leaves it open. Prompts are compared without regard to white space.

    Returns:
        [n] finding -> 1 or 0.

    Raises:
        UserError: the table cannot be used, or the set has prompts that it does not name.
    """
    known = _read_prompts(table)
    prompts = [_one_line(text) for text in images.texts]
    unlabelled = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    if unlabelled:
        listed = ", ".join(map(repr, unlabelled[:_PROMPTS_LISTED]))
        more = ", ..." if len(unlabelled) > _PROMPTS_LISTED else ""
        raise UserError(
            f"{table} lacks {len(unlabelled)} prompt(s) of {images.name}: {listed}{more}"
        )
    return [known[prompt] for prompt in prompts]


def _read_prompts(table: Path) -> dict[str, dict[str, int]]:
    if not table.is_file():
        raise UserError(f"{table}: there is no such table of prompts and labels")
    content = read_csv(table)
    findings = [n for n in content.names if label_name(n) not in {*NO_FINDINGS, "negative_prompt"}]
    if "prompt" not in content.names or not findings:
        raise UserError(
            f"{table} needs a column prompt and one for each label (it has: "
            f"{', '.join(content.names) or 'nothing'})"
        )
    known: dict[str, dict[str, int]] = {}
    for where, row in content.rows:
        prompt, labels = _one_line(row["prompt"]), {}
        for name in findings:
            try:
                value = finding(row[name])
            except NotAFinding as error:
                raise UserError(
                    f"{where}: {name} is {row[name]!r}; write 1, 0 or nothing"
                ) from error
            if value is not None:
                labels[label_name(name)] = value
        if known.setdefault(prompt, labels) != labels:
            raise UserError(f"{where}: {prompt!r} has other labels further up")
    return known


def _one_line(prompt: str) -> str:
    return " ".join(prompt.split())
