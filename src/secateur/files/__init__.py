"""A saved model is a folder of weights (safetensors), the plan, a manifest; perhaps the recipe and the report."""

from __future__ import annotations

from secateur.files.loading import Saved, load, open_folder
from secateur.files.saving import check_target, save
from secateur.files.state import load_weights

__all__ = ["Saved", "check_target", "load", "load_weights", "open_folder", "save"]
