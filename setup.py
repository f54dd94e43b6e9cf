"""Metadata; the tools' settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

# An own loop, learned losses and runs on arrays need these alone.
CORE = [
    "torch>=2.11",
    "gin-config>=0.5,<0.6",
    "annotated-types>=0.6",
    "numpy>=1.26",
    "safetensors>=0.4",
    "tqdm>=4.66",
]
# What the rest needs, by what it is for; metaloss.errors.EXTRAS names these to whom one is missing.
IMAGES = ["torchvision", "timm>=1.0.10", "einops>=0.8"]
TABLES = ["polars>=2", "scikit-learn>=1.4"]
REPORTS = ["matplotlib>=3.8", "scipy>=1.15", "jinja2>=3.1", "joblib>=1.5"]
TENSORBOARD = ["tensorboard>=2.21"]
ALL = [*IMAGES, *TABLES, *REPORTS, *TENSORBOARD]
SLURM = ["submitit>=1.5"]
RAY = ["ray>=2.40"]
LIGHTNING = ["lightning>=2.5"]
HF = ["transformers>=5", "accelerate>=1", "datasets>=4"]
RATE_FREE = ["prodigyopt>=1.1", "schedulefree>=1.4"]
WANDB = ["wandb>=0.19"]
MLFLOW = ["mlflow-skinny>=3"]
HUB = ["huggingface_hub>=1"]
ONNX = ["onnx>=1.20", "onnxscript>=0.6", "onnxruntime>=1.23"]
SEARCH = ["optuna>=4"]
PAGES = ["markdown-it-py>=3", "nbclient>=0.10", "nbformat>=5", "ipykernel>=6"]
TESTS = [
    *("pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6", "selenium>=4.20"),
    "setuptools>=70.1",  # which builds wheels by itself
    *SLURM,
    *RAY,
    *LIGHTNING,
    *HF,
    *RATE_FREE,
    *WANDB,
    *MLFLOW,
    *SEARCH,
    *HUB,
    *ONNX,
    *PAGES,
]
DOCS = ["sphinx>=8", "myst-parser>=4", "myst-nb>=1.2", "furo>=2024.8", "latex2mathml>=3.77"]
BENCHMARK = ["higher>=0.2.1", "torchopt>=0.7.3"]

setup(
    name="metaloss",
    version="0.2.0",
    description="Meta-learned loss functions, by an exact meta-gradient in one forward-mode pass",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["metaloss", "metaloss.*"]),
        "metaloss.gin_configs",
        "metaloss.tools",
    ],
    package_dir={"metaloss.gin_configs": "gin_configs", "metaloss.tools": "tools"},
    entry_points={"console_scripts": ["metaloss = metaloss.__main__:main"]},
    package_data={
        "metaloss": [
            "py.typed",
            "experiments/reports/*.json",
            "experiments/reports/*.j2",
            "representations/saved/zoo/*/*",
        ],
        "metaloss.gin_configs": ["*.gin", "*/*.gin"],
    },
    # Everything by default, since extras can add to a list and not take from it: whoever wants the
    # core alone installs it with --no-deps (README).
    install_requires=[*CORE, *ALL],
    extras_require={
        "images": IMAGES,
        "tables": TABLES,
        "reports": REPORTS,
        "tensorboard": TENSORBOARD,
        "all": ALL,
        "slurm": SLURM,
        "ray": RAY,
        "lightning": LIGHTNING,
        "hf": HF,
        "rate_free": RATE_FREE,
        "wandb": WANDB,
        "mlflow": MLFLOW,
        "search": SEARCH,
        "hub": HUB,
        "onnx": ONNX,
        "test": TESTS,
        "docs": DOCS,
        "benchmark": BENCHMARK,
        "dev": [*TESTS, *DOCS, "ruff==0.17.6", "mypy==2.4.1", "pre-commit>=4"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
