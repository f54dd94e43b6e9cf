"""What the server of tests/lives.py imports once for all lives."""

import matplotlib.animation
import sklearn.datasets
import sklearn.model_selection
import torch._dynamo  # which the first optimizer imports
import torch.utils.tensorboard
from PIL import Image, PngImagePlugin

from metaloss import events, launch, plugins
from metaloss.analysis import pictures

__all__ = [
    "Image", "PngImagePlugin", "events", "launch", "matplotlib", "pictures", "plugins", "sklearn",
    "torch",
]  # fmt: skip
