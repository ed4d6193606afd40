"""What pyproject.toml cannot say: a wheel carries conf/ and sweeps/ inside the package."""

from pathlib import Path
from shutil import copytree

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Also copies the folders that stand beside the package in the repository; an editable install reads them there."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            for name in ("conf", "sweeps"):
                copytree(name, Path(self.build_lib) / "imdb_rlhf" / name, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildPy})
