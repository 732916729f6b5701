r"""What text encoders know of the findings in reports: CLIP and in-domain BERTs (2210.04133, E3).

Command:   medsd-jax probe-text --config text_probe \
               --encoder CompVis/stable-diffusion-v1-4 --encoder PUBMEDBERT --encoder CLINICALBERT \
               --encoder SAPBERT --encoder RADBERT \
               --source folder --path my_images --output runs/text_probe
           The capitals are folders of
               microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext (PubMedBERT),
               emilyalsentzer/Bio_ClinicalBERT,
               cambridgeltl/SapBERT-from-PubMedBERT-fulltext,
               StanfordAIMI/RadBERT (RoentGen's),
           each with model.safetensors (transformers' save_pretrained makes it of a pickle).
           What fine-tuning did to one: --encoder models/radbert --encoder runs/radbert
Hardware:  one GPU or TPU chip of 16 GB; ten thousand texts and two CPU cores are possible.
Expected:  not run with published weights yet. The paper found CLIP surprisingly competitive;
           RoentGen tells 25 % better pneumothorax classification after fine-tuning its encoder.
Settings:  the paper tells neither task nor pooling. Ours: a linear probe of each label from the
           mean of the last hidden state over the text's tokens, fitted and scored on different
           patients; no attention mask, as the U-Net's context has none; 77 tokens, CLIP's length.
"""

from ml_collections import ConfigDict

from medsd_jax.config import text_probe_config


def get_config() -> ConfigDict:
    """The default probe, with more resamples: a few encoders differ by little."""
    config = text_probe_config()
    config.num_resamples = 2000
    return config
