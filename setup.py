"""Packaging of igam_tf; `pip install -e .[dev]` is all a contributor needs."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="igam_tf",
    version="0.1.0",
    description="Input gradient adversarial matching (IGAM, CVPR 2020) in TensorFlow 2 / Keras 3",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["igam_tf*", "madry_models*"]),
    python_requires=">=3.11,<3.14",
    install_requires=[
        "tensorflow>=2.20,<2.22",
        "keras>=3.12,<3.16",
        "tensorflow-datasets>=4.9.9,<4.10",
        "tensorboard>=2.20,<2.22",  # not pulled in by every TensorFlow wheel
        "numpy>=1.26,<3",
        "absl-py>=2.1,<3",
        "tqdm>=4.66,<5",
        "pillow>=10",
    ],
    extras_require={"dev": ["pytest>=8,<10", "pytest-timeout>=2.3,<3", "ruff>=0.8,<1"]},
)
