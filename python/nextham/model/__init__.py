"""The NextHAM network: an ensemble that predicts ΔH = H − H⁽⁰⁾ from H⁽⁰⁾ and the structure.

`config` what it is made of · `layers`, `attention`, `network`, `ensemble` the network, written plainly on the ops of
`nextham_kernels` · `predict` blocks in, blocks out · `checkpoint`, `published_checkpoint`, `published_names` files.
"""

from nextham.model.checkpoint import load, save
from nextham.model.config import NextHAMConfig
from nextham.model.ensemble import Ensemble, Prediction
from nextham.model.file_streaming import predict_file
from nextham.model.predict import predict_delta
from nextham.model.published_checkpoint import load_any, load_published, published_manifest, save_published
from nextham.model.published_names import published_places, published_tensors

__all__ = [
    "Ensemble",
    "NextHAMConfig",
    "Prediction",
    "load",
    "load_any",
    "load_published",
    "predict_delta",
    "predict_file",
    "published_manifest",
    "published_places",
    "published_tensors",
    "save",
    "save_published",
]
