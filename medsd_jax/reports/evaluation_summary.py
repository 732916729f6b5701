"""The main numbers of an evaluation in a few lines on the screen."""

from typing import Any

from medsd_jax.evaluation.memorization.alarm import FEW_PATIENTS


def print_summary(report: dict[str, Any]) -> None:
    """Says the main numbers in a few lines."""
    for spec, space in report["fidelity"].items():
        print(f"{spec}: {_in_words(space)}")
    if found := report["diversity"]:
        print(
            f"MS-SSIM within prompts {found['ms_ssim']['value']:.3f} ({found['num_prompts']} "
            f"prompts of {found['pictures_a_prompt']} pictures, {found['num_scales']} scales)"
        )
    for label, entry in (report["condition"] or {"labels": {}})["labels"].items():
        accuracy, count = entry["prompt_accuracy"], sum(entry["confusion"].values())
        print(
            f"{label}: {accuracy['value']:.1%} of {count} pictures show what their prompt "
            f"asks for ({accuracy['ci95'][0]:.1%} to {accuracy['ci95'][1]:.1%})"
        )
    for space, entry in (report["privacy"] or {"spaces": {}})["spaces"].items():
        print(f"{space}: {_alarm_in_words(entry)}")


def _alarm_in_words(entry: dict[str, Any]) -> str:
    if entry["doubt"]:
        return f"the alarm means nothing, as {entry['doubt']}"
    low, high = entry["by_chance_ci95"]
    words = (
        f"{entry['num_suspicious']} pictures are nearer to a training picture than strangers are "
        f"({entry['expected_by_chance']:.1f} by chance, {low} to {high} in 95 % of cases"
    )
    rate, patients = entry["alarm_rate"], entry["num_held_out_patients"]
    if patients < FEW_PATIENTS:
        words += f"; only {patients} patients are held out: {rate:.1%} of strangers are accused"
    return words + ")"


def _in_words(space: dict[str, Any]) -> str:
    halves, fid = space["fid_real_halves"], space["fid"]
    parts = [
        f"FID {fid['value']:.4g} ({fid['ci95'][0]:.4g} to {fid['ci95'][1]:.4g}; halves of the real "
        f"set: {halves['mean']:.4g})"
    ]
    parts += [
        f"{name} {space[name]['value']:.3g}"
        for name in ("kid", "precision", "recall", "density", "coverage")
    ]
    return ", ".join(parts)
