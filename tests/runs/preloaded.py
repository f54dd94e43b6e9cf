"""What the server of tests/runs/lives.py imports once for all lives."""

import matplotlib.animation
import sklearn.datasets
import sklearn.model_selection
import torch._dynamo  # which the first optimizer imports
import torch.utils.tensorboard
from PIL import Image, PngImagePlugin

from metaloss.config import plugins
from metaloss.runs import launch, pictures
from metaloss.runs.callbacks import tensorboard

__all__ = [
    "Image", "PngImagePlugin", "launch", "matplotlib", "pictures", "plugins", "sklearn",
    "tensorboard",
    "torch",
]  # fmt: skip
