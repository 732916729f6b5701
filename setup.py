"""What a wheel holds: medsd_jax, and configs/ as medsd_jax/recipes. See pyproject.toml too."""

import shutil
import subprocess

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

RECIPES = "medsd_jax.recipes"


def _committed(folder: str) -> set[str] | None:
    """The files of a folder that git knows; None outside of a clone, as in an unpacked sdist."""
    try:
        listed = subprocess.run(["git", "ls-files", folder], capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return set(listed.stdout.split()) or None


class _BuildPackages(build_py):
    """Leaves out what was not meant for others."""

    def run(self) -> None:
        if not self.editable_mode:
            # An earlier build leaves modules there that were deleted since.
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        result = super().find_package_modules(package, package_dir)
        # A recipe that is not committed is somebody's own, with the paths of their data.
        known = _committed(package_dir) if package == RECIPES else None
        return [entry for entry in result if known is None or entry[2] in known]


setup(
    packages=[*find_packages(include=["medsd_jax*"]), RECIPES],
    package_dir={RECIPES: "configs"},
    cmdclass={"build_py": _BuildPackages},
)
