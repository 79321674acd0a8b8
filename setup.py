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
    author="The kinv authors",
    license="Apache-2.0",
    keywords="invariance, feature inversion, interpretability, GAN, Keras",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Intended Audience :: Developers",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=[
        *find_packages(include=["kinv", "kinv.*"]),
        "kinv.tools",
        "kinv.exported",
    ],
    package_dir={"kinv.tools": "tools", "kinv.exported": "exported"},
    package_data={
        "kinv.analysis": ["report.html", "scene_factors.keras"],
        "kinv.serving": ["explorer.html", "examples/*/*"],
        # The one pipeline that is installed, found by its name.
        "kinv.exported": ["scenes32-robust/**/*"],
    },
    entry_points={"console_scripts": ["kinv = kinv.__main__:main"]},
    python_requires=">=3.10",
    # Lower bounds are what was tested, upper bounds the next release that may
    # break. constraints.txt has the exact versions, such as TensorFlow 2.21 and
    # Keras 3.15.
    install_requires=[
        # Everything: data streams, devices, SavedModels. tensorflow-addons is
        # not used beside it: its last release, 0.23.0 (end of life May 2024),
        # cannot be imported beside TensorFlow 2.16 or later.
        "tensorflow>=2.21,<2.23",
        # Everything else: layers, networks, training.
        "keras>=3.15,<4; python_version >= '3.11'",
        # The same; later releases need Python 3.11.
        "keras>=3.12,<3.13; python_version < '3.11'",
        # Data sets by name; kinv_scenes is one of its builders.
        "tensorflow-datasets>=4.9.10,<5",
        # tensorflow-datasets needs it without saying so.
        "importlib_resources>=6,<8",
        # The warm-up requests in an export, and messages of the gRPC protocol.
        "tensorflow-serving-api>=2.21,<2.23",
        "tensorboard>=2.20,<2.23",  # summaries
        "numpy>=2,<3",  # arrays
        "h5py>=3.11,<4",  # checkpoints
        "pillow>=11.3,<14",  # image files
        "matplotlib>=3.9,<4",  # grids and plots
        "scipy>=1.13,<2",  # intervals and tests
        "jinja2>=3.1,<4",  # the report's page
        "tqdm>=4.66,<5",  # progress of analyses
        "starlette>=0.48,<2",  # the REST protocol and the explorer's page
        "uvicorn>=0.35,<1",  # the server of these
        "orjson>=3.11,<4",  # JSON of the REST protocol
        "grpcio>=1.70,<2",  # the gRPC protocol
        "grpcio-health-checking>=1.70,<2",  # its health protocol
        "prometheus-client>=0.22,<1",  # the server's counts and latencies
        "requests>=2.32,<3",  # calls of REST servers
        "psutil>=7,<8",  # the memory of a measured server
    ],
    extras_require={
        "test": [
            "pytest>=8,<10",  # runs the tests
            "pytest-xdist>=3.6,<4",  # on several cores
            "ruff>=0.14,<1",  # make lint, make format
            "scikit-learn>=1.6,<2",  # the digits of docs/data.md
            "ai-edge-litert>=2.1,<3",  # runs what tools/export.py --lite writes
            "jax>=0.6,<1",  # the networks on another backend of Keras
            "hypothesis>=6.130,<7",  # requests that nobody thought of
            # The explorer in a browser. Needs Debian's chromium; without it
            # these tests are skipped.
            "playwright>=1.50,<2",
        ],
    },
)
