"""Images laid out for the evaluation scripts of other groups."""

from pathlib import Path

from tqdm import tqdm

from medsd_jax.evaluation.images.export import write_image_folders
from medsd_jax.evaluation.images.image_sets import open_images
from medsd_jax.evaluation.images.prompt_labels import known_labels


def export_images(real: Path | str, synthetic: Path | str, output: Path) -> dict[str, int]:
    """Writes two sets of images as clean-fid, RoentGen's scripts and CheXGenBench read them.

    Args:
        real: as for `medsd_jax.evaluate`.
        synthetic: likewise.
        output: a new folder; gets clean-fid/, roentgen/ and chexgenbench/.

    Returns:
        How many "real" and "synthetic" images and "prompts" there are.

    Raises:
        UserError: a set cannot be read, or `output` is there already.
    """
    given = {"real": real, "synthetic": synthetic}
    sets = {name: open_images(where, patients=False) for name, where in given.items()}
    labels = {name: known_labels(images) for name, images in sets.items()}
    with tqdm(total=sum(map(len, sets.values())), unit="image", desc="export") as bar:
        return write_image_folders(output, sets["real"], sets["synthetic"], labels, bar.update)
