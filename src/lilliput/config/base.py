"""What all settings are: frozen, strict, and without unknown fields, so that a typing error in a recipe is an error
message and never a silently ignored setting."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
