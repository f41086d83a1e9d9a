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
        "igam_tf.flagfiles": ["*.flags"],
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
            "madry-fetch = madry_models.fetch:program",
            "madry-convert = madry_models.convert:program",
        ]
    },
    python_requires=">=3.11,<3.14",
    install_requires=[
        # The ranges are those the test suite has run with.
        "tensorflow>=2.21,<2.22",
        "keras>=3.15,<3.16",
        "tensorflow-datasets>=4.9.10,<4.10",
        "importlib_resources>=7,<8",  # tensorflow-datasets needs it and does not say so
        "tensorboard>=2.21,<2.22",  # not pulled in by every TensorFlow wheel
        "numpy>=2.4,<2.5",
        "absl-py>=2.5,<3",
        "tqdm>=4.70,<5",
        "matplotlib>=3.11,<3.12",  # the audit's plots
    ],
    extras_require={
        "dev": [
            "pytest>=9,<10",
            "pytest-timeout>=2.4,<3",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.17,<0.18",
        ],
        # Other people's attacks, to check ours against.
        # multiprocess: imported by ART's AutoAttack, which does not declare it.
        "crosscheck": [
            "foolbox>=3.3,<4",
            "adversarial-robustness-toolbox>=1.20,<2",
            "multiprocess>=0.70,<1",
        ],
    },
)
