"""What every section of the configuration shares."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def check_gpus(name: str, gpus: float | str | None) -> None:
    """Refuse a number of GPUs that Ray does not give: it counts in ten-thousandths of one, and above one only whole GPUs.

    Raises:
        ValueError: `name` says where it stands.
    """
    if isinstance(gpus, float) and (gpus != round(gpus, 4) or (gpus > 1.0 and gpus != int(gpus))):
        raise ValueError(
            f"{name} {gpus:g} is not allowed: give at most four decimals up to 1, whole numbers above"
        )
