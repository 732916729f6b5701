"""Words for findings: the one vocabulary that phantom captions and NIH captions share.

Prompts learnt on phantoms keep their meaning on real images because both say, for example,
"Large left pleural effusion." Sides are the patient's: the patient's left is on the image's right.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

EFFUSION = "pleural effusion"
CARDIOMEGALY = "cardiomegaly"
PNEUMOTHORAX = "pneumothorax"
NODULE = "nodule"

PAPER_NORMAL = "A photo of a lung xray"
PAPER_EFFUSION = "A photo of a lung xray with a visible pleural effusion"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One finding of an image.

    Attributes:
        kind: the radiology word, e.g. "pleural effusion".
        side: "left", "right", "bilateral" or "" (patient's side).
        size: "small", "moderate", "large" ("mild", "marked" for the heart) or "".
        zone: "upper", "mid" or "lower" for a nodule, else "".
    """

    kind: str
    side: str = ""
    size: str = ""
    zone: str = ""


def phrase(finding: Finding, style: int = 0) -> str:
    """Say one finding in lower case, e.g. "large left pleural effusion".

    Args:
        finding: what to say.
        style: 0 is the terse form; 1 is wordier ("left-sided pleural effusion, large in size").
    """
    if finding.kind == CARDIOMEGALY:
        wordy = f"{finding.size} enlargement of the cardiac silhouette".strip()
        return wordy if style else f"{finding.size} {CARDIOMEGALY}".strip()
    if finding.kind == NODULE and finding.zone:
        place = f"{finding.side} {finding.zone} {'lung zone' if style else 'zone'}"
        return f"{finding.size} {'pulmonary ' if style else ''}nodule in the {place}".strip()
    plural = "s" if finding.side == "bilateral" and finding.kind == EFFUSION else ""
    if style:
        side = finding.side if finding.side in ("", "bilateral") else f"{finding.side}-sided"
        return " ".join(w for w in (side, finding.kind + plural) if w) + (
            f", {finding.size} in size" if finding.size else ""
        )
    return " ".join(w for w in (finding.size, finding.side, finding.kind + plural) if w)


def join_phrases(phrases: Sequence[str]) -> str:
    """Join as a sentence would: "a", "a and b", "a, b and c"."""
    if len(phrases) < 2:
        return "".join(phrases)
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def sentence(text: str) -> str:
    """Upper-case the first letter and end with a full stop."""
    return text[:1].upper() + text[1:] + "."


def report_caption(phrases: Sequence[str], view: str = "") -> str:
    """Build the report-style caption, "Chest X-ray, PA view. Small left pleural effusion." say.

    Args:
        phrases: findings in lower case; none means "No finding."
        view: "PA", "AP" or "" for not said.
    """
    head = f"Chest X-ray, {view} view." if view else "Chest X-ray."
    return f"{head} {sentence(join_phrases(phrases)) if phrases else 'No finding.'}"


_NORMAL_SENTENCES = (
    "Chest X-ray. No finding.",
    "Chest X-ray. The lungs are clear.",
    "Normal chest X-ray.",
    "Chest X-ray. No acute cardiopulmonary abnormality.",
    "Frontal chest radiograph. Clear lungs and normal heart size.",
    "Chest X-ray. No pleural effusion or pneumothorax.",
)


def paper_caption(phrases: Sequence[str]) -> str:
    """Build a caption in the words of the paper's prompts.

    For [] and ["pleural effusion"] these are the paper's own two prompts, letter for letter.
    """
    if not phrases:
        return PAPER_NORMAL
    visible = [f"{_article(words)}visible {words}" for words in phrases]
    return f"{PAPER_NORMAL} with {join_phrases(visible)}"


_UNCOUNTED = (
    "atelectasis",
    "cardiomegaly",
    "consolidation",
    "edema",
    "emphysema",
    "fibrosis",
    "infiltration",
    "pleural effusions",
    "pleural thickening",
    "pneumonia",
)


def _article(words: str) -> str:
    return "" if words.endswith(_UNCOUNTED) else "a "


_PAPER_FRACTION = 0.4
"""Of the phantoms' captions, in the paper's prompt style."""


def varied_caption(findings: Sequence[Finding], view: str, rng: np.random.Generator) -> str:
    """Draw one caption for these findings.

    Args:
        findings: what the image shows; empty for a normal one.
        view: "PA" or "AP"; said in some captions only.
        rng: consumed.

    Returns:
        One line of at most about 40 words, well inside CLIP's 77 tokens.
    """
    if rng.random() < _PAPER_FRACTION:
        # Mostly the bare words, so that the paper's prompts are frequent in training.
        detailed = rng.random() < 0.25
        return paper_caption([phrase(f) if detailed else f.kind for f in findings])
    draw = rng.random()
    if not findings:
        if draw < 0.3:
            return report_caption((), view)
        return _NORMAL_SENTENCES[rng.integers(len(_NORMAL_SENTENCES))]
    terse = [phrase(f) for f in findings]
    counted = [_article(words) + words for words in terse]
    wordy = [phrase(f, style=1) for f in findings]
    if draw < 0.45:
        return report_caption(terse)
    if draw < 0.65:
        return report_caption(terse, view)
    if draw < 0.8:
        verb = "are" if findings[0].side == "bilateral" else "is"
        return f"Chest X-ray. There {verb} {join_phrases(counted)}."
    if draw < 0.9:
        return f"Frontal chest radiograph showing {join_phrases(counted)}."
    return "Chest X-ray. " + " ".join(sentence(w) for w in wordy)


_SPOKEN = {
    EFFUSION: r"pleural effusions?|effusions?",
    CARDIOMEGALY: r"cardiomegaly|(?:enlargement of the|enlarged) (?:cardiac silhouette|heart)",
    "edema": r"(?:pulmonary )?o?edema",
    "mass": r"(?:lung |pulmonary )?mass(?:es)?",
    NODULE: r"nodules?",
    "pleural thickening": r"pleural thickening",
    "hernia": r"hernias?",
    "infiltration": r"infiltrat(?:ion|e)s?",
} | {word: word for word in ("atelectasis", "consolidation", "emphysema", "fibrosis",
                             PNEUMOTHORAX, "pneumonia")}  # fmt: skip
_NEGATED = re.compile(
    r"\b(?:no|without|(?:free|clear) of|negative for|resolved|absence of)\b", re.IGNORECASE
)
_TURN = re.compile(r"\bbut\b|\bhowever\b", re.IGNORECASE)


def findings_in(text: str) -> dict[str, int]:
    """Read which findings a prompt asks for.

    It is meant for prompts, ours and the papers', not for whole reports: a negation ("no",
    "without", ...) holds to the end of its sentence or to a "but", and nothing is uncertain.

    Args:
        text: the prompt.

    Returns:
        label -> 1 or 0 for every finding that has words here; labels as in records
        ("pleural_effusion").
    """
    clauses = [c for s in re.split(r"[.;\n]", text) for c in _TURN.split(s)]
    spoken = [_NEGATED.split(clause, maxsplit=1)[0] for clause in clauses]
    return {
        kind.replace(" ", "_"): int(
            any(re.search(rf"\b(?:{words})\b", part, re.IGNORECASE) for part in spoken)
        )
        for kind, words in _SPOKEN.items()
    }
