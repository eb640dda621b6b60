"""Settings of the stages that make the run's products: the file, its measurement, the page."""

from pydantic import Field

from lilliput.config.base import Settings


class ExportSettings(Settings):
    """Stage `export`: lower the model to a program and write `model.lil`."""

    golden: int = Field(default=1, ge=1, le=64, description="examples with their exact outputs, kept in the file")
    packed: bool = Field(default=False, description="write `model.lilz` too: the file packed for transport")


class EvaluateSettings(Settings):
    """Stage `evaluate`: accuracy of the artifact, through the runtime, on the test set."""

    samples: int = Field(default=24, ge=0, le=200, description="test images with predictions kept for the report")


class ReportSettings(Settings):
    """Stage `report`: one self-contained page and its records."""

    title: str | None = None
