"""Validated settings: one class for the data, the model and each stage, and the recipe that holds them.

A recipe file (TOML) is a diff from these defaults.
"""

from lilliput.config.base import Settings
from lilliput.config.data import AugmentSettings, DataSettings
from lilliput.config.load import load_recipe, parse_recipe, parse_settings
from lilliput.config.model import LayerSettings, ModelSettings, StemConvSettings
from lilliput.config.passes import (
    BLOCK,
    SIX_BIT_BLOCK,
    FactorizeSettings,
    HiddenScales,
    PruneSettings,
    QuantizeSettings,
    ShareSettings,
    ShrinkSettings,
    WeightFormatName,
)
from lilliput.config.products import EvaluateSettings, ExportSettings, ReportSettings
from lilliput.config.recipe import Recipe
from lilliput.config.train import FinetuneSettings, FitSettings, LoopSettings, TeacherSettings, TrainSettings

__all__ = [
    "BLOCK",
    "SIX_BIT_BLOCK",
    "AugmentSettings",
    "DataSettings",
    "EvaluateSettings",
    "ExportSettings",
    "FactorizeSettings",
    "FinetuneSettings",
    "FitSettings",
    "HiddenScales",
    "LayerSettings",
    "LoopSettings",
    "ModelSettings",
    "PruneSettings",
    "QuantizeSettings",
    "Recipe",
    "ReportSettings",
    "Settings",
    "ShareSettings",
    "ShrinkSettings",
    "StemConvSettings",
    "TeacherSettings",
    "TrainSettings",
    "WeightFormatName",
    "load_recipe",
    "parse_recipe",
    "parse_settings",
]
