"""Small reports as JSON values, of which a reader takes what it needs."""

from typing import Any

from medsd_jax.evaluation.reports import evaluation as parts
from medsd_jax.evaluation.reports import reconstruction as vae
from medsd_jax.evaluation.reports.base import Estimate, ImageSetSummary
from medsd_jax.reports.writing import to_json

SCORE = Estimate(0.5, 4, (0.1, 0.9))
SET = ImageSetSummary(
    where="a", num_images=3, num_patients=2, unreadable=(), fingerprint="0123456789abcdef"
)


def evaluation(label: str, space: str) -> dict[str, Any]:
    """Of a feature space and a finding."""
    network = parts.FeatureSpace(
        network="latent", weights_and_input="0123456789abcdef", input_chain="x", rough=True
    )
    distances = parts.Distances(
        num_real=3, num_synthetic=3, width=4, fid=SCORE, kid=SCORE, precision=SCORE, recall=SCORE,
        density=SCORE, coverage=SCORE, k=5,
        fid_extrapolated=parts.ExtrapolatedFid(
            value=1.0, standard_error=0.1, smallest_subset=1, sizes=(1, 2), distances=(2.0, 1.0)
        ),
        fid_real_halves=parts.RealHalves(mean=1.0, range=(0.5, 1.5), num_images=1, num_patients=2),
    )  # fmt: skip
    adherence = parts.LabelAdherence(
        label=label, prompt_accuracy=SCORE, auroc=None, f1=None, prompts=(), num_prompts=2,
        confusion=parts.Confusion(
            true_positives=1, false_negatives=0, false_positives=0, true_negatives=1
        ),
        by_subgroup={},
    )  # fmt: skip
    report = parts.EvaluationReport(
        versions={}, sets={"real": SET, "synthetic": SET}, feature_spaces={space: network},
        fidelity={space: distances}, subgroups={space: {}}, diversity=None, memorization=None,
        prompt_adherence=parts.PromptAdherence(
            labels={label: adherence}, not_in_prompts=(), on_real_images={}
        ),
        seed=0, protocol="0123456789abcdef",
    )  # fmt: skip
    return to_json(report)


def reconstruction(label: str) -> dict[str, Any]:
    """With a classifier that knows the finding."""
    spread = vae.Spread(mean=SCORE, std=0.1, quantiles={"0.05": 0.1, "0.5": 0.5, "0.95": 0.9})
    worst = vae.WorstImage(image="a", rmse=0.1, psnr=20.0, ssim=0.5, ms_ssim=0.5)
    report = vae.ReconstructionReport(
        versions={}, model=vae.MeasuredModel(where="m", vae_hash="0123456789abcdef"), set=SET,
        measured=vae.MeasuredImages(num_images=3, num_patients=2, image_size=16, resize_mode="pad"),
        result=vae.CriteriaResult(
            good_enough=True, caveat="c",
            criteria=(
                vae.Criterion(name="psnr", minimum=1.0, value=2.0, passed=True, share_below=0.0),
            ),
        ),
        similarity=vae.Similarity(num_scales=1, rmse=spread, psnr=spread, ssim=spread,
                                  ms_ssim=spread),
        colour_cast=vae.ColourCast(red_green=SCORE, green_blue=SCORE, blue_red=SCORE),
        bands=tuple(
            vae.Band(name=name, low=0.0, high=1.0, share=SCORE, bias=None, rmse=None)
            for name in ("air", "lung", "soft_tissue", "bone")
        ),
        classifier=vae.ClassifierFlips(
            where="c", image_size=16,
            labels={
                label: vae.LabelFlips(
                    prediction_flips=SCORE, appeared=0, vanished=0, auroc=None
                )
            },
        ),
        worst=(worst, worst), seed=0,
    )  # fmt: skip
    return to_json(report)
