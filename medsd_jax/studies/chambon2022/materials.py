"""What `reproduce --scale phantom` needs: base model, classifier, BERT and real images."""

import dataclasses
from pathlib import Path

import numpy as np

from medsd_jax.data.findings import EFFUSION
from medsd_jax.data.phantoms.phantom import phantom_records
from medsd_jax.data.sources.folder import write_image_folder
from medsd_jax.files import save_tensors, write_json
from medsd_jax.interop.torch_layout import to_torch
from medsd_jax.interop.train_tokenizer import train_bert_vocabulary
from medsd_jax.models.bert import BertModel
from medsd_jax.models.bert_config import BertTextConfig
from medsd_jax.models.scratch import random_params
from medsd_jax.studies.chambon2022.experiments import Materials, Study, prompts_of, recipe_of, timed
from medsd_jax.studies.demo.run import make_untrained
from medsd_jax.workflows.train.data import open_data
from medsd_jax.workflows.train.run import train
from medsd_jax.workflows.train_classifier import REPORT, train_classifier

WIDTH = 96
"""Of the small BERT: the context width of the demo's U-Net, as 768 fits Stable Diffusion 1."""
REAL_SEED = 300
REAL_OF_EACH_KIND = 256


def make_materials(study: Study) -> Materials:
    """Trains base model and classifier, and draws the held-out images; keeps what is there."""
    output = study.output
    untrained, vae, base = (output / name for name in ("untrained", "base_vae", "base"))
    classifier, bert, real = output / "classifier", output / "encoder", output / "real"
    vae_recipe = recipe_of(study, "phantom_base_vae")
    if not (untrained / "model_index.json").exists():
        vae_recipe.model.path = str(untrained)
        make_untrained(untrained, vae_recipe)
    for name, start, workdir in (
        ("phantom_base_vae", untrained, vae),
        ("phantom_base", vae, base),
    ):
        if not (workdir / "model" / "model_index.json").exists():
            print(f"[reproduce] {name}", flush=True)
            config = recipe_of(study, name)
            config.model.path = str(start)
            with timed(workdir):
                train(config.lock(), workdir)
    if not (classifier / REPORT).exists():
        print("[reproduce] classifier", flush=True)
        train_classifier(recipe_of(study, "demo_classifier").lock(), classifier)
    if not (bert / "config.json").exists():
        write_small_bert(bert, open_data(recipe_of(study, "phantom_base"), base).train.texts)
    if not (real / "metadata.csv").exists():
        _draw_real(real, prompts_of(study))
    return Materials(str(base), str(bert), str(real), classifier, (f"classifier={classifier}",))


def write_small_bert(folder: Path, captions: tuple[str, ...]) -> None:
    """A BERT of random weights with a vocabulary learnt from the captions.

    No published encoder is as narrow as the demo's U-Net. Random layers keep texts apart, and that
    is all that the comparison asks of them; what pre-training adds is for the full scale to show.
    """
    vocabulary = train_bert_vocabulary(captions, size=600)
    config = BertTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=77,
    )
    params = random_params(
        lambda rngs: BertModel(config, rngs=rngs), np.random.default_rng(0), embedding_std=0.5
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tensors = {name: np.ascontiguousarray(x) for name, x in to_torch(params).items()}
    save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "config.json", config.to_dict(), sort_keys=False)


def _draw_real(folder: Path, prompts: tuple[str, str]) -> None:
    """Phantoms of patients that no model has seen: half of them with an effusion, nothing else."""
    chosen = {0: [], 1: []}
    for record in phantom_records(3000, seed=REAL_SEED):
        shown = record.labels[EFFUSION.replace(" ", "_")]
        alone = record.labels["no_finding"] or (
            shown and not any(record.labels[k] for k in ("cardiomegaly", "pneumothorax", "nodule"))
        )
        if alone and len(chosen[shown]) < REAL_OF_EACH_KIND:
            chosen[shown].append(dataclasses.replace(record, text=prompts[shown]))
    write_image_folder([*chosen[0], *chosen[1]], folder, progress=False)
