"""Packaging of igam_tf; `pip install -e .[dev]` is all a contributor needs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "igam_tf" / "__init__.py").read_text("utf-8"))

setup(
    name="igam_tf",
    version=VERSION[1],
    license="Apache-2.0",
    description="Input gradient adversarial matching (IGAM, CVPR 2020) in TensorFlow 2 / Keras 3",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=[*find_packages(include=["igam_tf*", "madry_models*"]), "igam_tf.flagfiles"],
    package_dir={"igam_tf.flagfiles": "flags"},
    package_data={
        "igam_tf": ["py.typed"],
        "igam_tf.audit": ["README.md"],
        "igam_tf.flagfiles": ["*.flags", "*/*.flags", "*/*/*.flags"],
        "madry_models": ["py.typed"],
    },
    entry_points={
        "console_scripts": [
            "igam-train = igam_tf.train:program",
            "igam-eval = igam_tf.eval_pgd:program",
            "igam-audit = igam_tf.audit.__main__:program",
            "igam-reproduce = igam_tf.reproduce.__main__:program",
            "igam-figures = igam_tf.figures.__main__:program",
            "igam-export = igam_tf.export:program",
            "igam-report = igam_tf.report:program",
            "igam-convert = igam_tf.pytorch.convert:program",
            "igam-teacher-check = igam_tf.teacher_check:program",
            "madry-fetch = madry_models.fetch:program",
            "madry-convert = madry_models.convert:program",
        ]
    },
    python_requires=">=3.10,<3.14",
    install_requires=[
        # The suite has run with both ends of each range; tests/oldest.txt has the lower ones.
        "tensorflow>=2.18,<2.22",
        "keras>=3.12.1,!=3.13.0,!=3.13.1,<3.16",  # without CVE-2026-1462
        "tensorflow-datasets>=4.9.7,<4.10",
        "importlib_resources>=6.4,<8",  # tensorflow-datasets needs it and does not say so
        "tensorboard>=2.18,<2.22",  # not pulled in by every TensorFlow wheel
        "numpy>=1.26,<2.5",
        "absl-py>=2.1,<3",
        "tqdm>=4.66,<5",
        "pillow>=10.3,<14",  # images of folder:
        "matplotlib>=3.8,<3.12",  # plots of audits, tables and figures
    ],
    extras_require={
        "dev": [
            "pytest>=9,<10",
            "pytest-timeout>=2.4,<3",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.17,<0.18",
            "mypy>=2.4,<3",
            "build>=1.6,<2",
            "twine>=7,<8",
        ],
        # The site and its tutorials: `make docs`, `make tutorials`.
        "docs": [
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.8,<10",
            "mkdocstrings[python]>=1,<2",
            "mkdocs-jupyter>=0.26,<0.27",
            "jupytext>=1.19,<2",
            "nbconvert>=7.17,<8",
            "ipykernel>=7.4,<8",
        ],
        # Networks of PyTorch.
        "torch": ["torch>=2.14,<2.15", "safetensors>=0.4,<0.9"],
        # Other people's attacks, to check ours against.
        # multiprocess: imported by ART's AutoAttack, which does not declare it.
        "crosscheck": [
            "foolbox>=3.3,<4",
            "adversarial-robustness-toolbox>=1.20,<2",
            "multiprocess>=0.70,<1",
        ],
    },
)
