"""The main numbers of an evaluation in a few lines."""

from medsd_jax.evaluation.memorization.alarm import FEW_PATIENTS
from medsd_jax.evaluation.reports.evaluation import Distances, EvaluationReport, NearestInSpace


def in_words(report: EvaluationReport) -> str:
    """The main numbers in a few lines."""
    lines = [f"{spec}: {_fidelity(distances)}" for spec, distances in report.fidelity.items()]
    if result := report.diversity:
        lines.append(
            f"MS-SSIM within prompts {result.ms_ssim.value:.3f} ({result.num_prompts} "
            f"prompts of {result.images_per_prompt} images, {result.num_scales} scales)"
        )
    if report.prompt_adherence is not None:
        for label, entry in report.prompt_adherence.labels.items():
            count = sum(vars(entry.confusion).values())
            lines.append(
                f"{label}: {entry.prompt_accuracy:.1%} of {count} images show what their prompt "
                "asks for"
            )
    if report.memorization is not None:
        spaces = report.memorization.spaces.items()
        lines += [f"{space}: {_alarm(entry)}" for space, entry in spaces]
    return "\n".join(lines)


def _alarm(entry: NearestInSpace) -> str:
    if entry.doubt:
        return f"the alarm means nothing, as {entry.doubt}"
    low, high = entry.by_chance_ci95
    words = (
        f"{entry.num_suspicious} images are nearer to a training image than those of other "
        f"patients are ({entry.expected_by_chance:.1f} by chance, {low} to {high} in 95 % of cases"
    )
    patients = entry.num_held_out_patients
    if patients < FEW_PATIENTS:
        words += (
            f"; only {patients} patients are held out: {entry.alarm_rate:.1%} of other patients' "
            "images set off the alarm"
        )
    return words + ")"


def _fidelity(distances: Distances) -> str:
    parts = [
        f"FID {distances.fid:.4g}, between halves of the real set "
        f"{distances.fid_real_halves.mean:.4g}"
    ]
    parts += [
        f"{name} {getattr(distances, name).value:.3g}"
        for name in ("kid", "precision", "recall", "density", "coverage")
    ]
    return ", ".join(parts)
