"""Metadata and dependencies of kinv; tools' settings are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+?)"', (HERE / "kinv" / "__init__.py").read_text()
).group(1)

setup(
    name="kinv",
    version=VERSION,
    description="Shows what an image classifier still knows at its logits",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["kinv", "kinv.*"]),
    package_data={
        "kinv.analysis": ["report.html", "scene_factors.keras"],
        "kinv.serving": ["explorer.html"],
    },
    python_requires=">=3.10",
    # Lower bounds are what was tested, upper bounds the next release that may
    # break. constraints.txt has the exact versions.
    install_requires=[
        "tensorflow>=2.21,<2.23",
        "keras>=3.15,<4; python_version >= '3.11'",
        # Later releases need Python 3.11.
        "keras>=3.12,<3.13; python_version < '3.11'",
        "tensorflow-datasets>=4.9.10,<5",
        # tensorflow-datasets needs it without saying so.
        "importlib_resources>=6,<8",
        "tensorflow-serving-api>=2.21,<2.23",
        "tensorboard>=2.20,<2.23",
        "numpy>=2,<3",
        "h5py>=3.11,<4",
        "pillow>=11,<14",
        "matplotlib>=3.9,<4",
        "scipy>=1.13,<2",
        "jinja2>=3.1,<4",
        "tqdm>=4.66,<5",
        "fastapi>=0.120,<1",
        "uvicorn>=0.35,<1",
        "orjson>=3.11,<4",
        "grpcio>=1.70,<2",
        "requests>=2.32,<3",
        "psutil>=7,<8",
    ],
    extras_require={
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.14,<1",
            "scikit-learn>=1.6,<2",
            "hypothesis>=6.130,<7",
            "playwright>=1.50,<2",
        ],
        # The photographs of docs/photographs.py.
        "docs": ["scikit-image>=0.25,<1"],
    },
)
