"""What the service answers, for its OpenAPI description."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """What is wrong, in one line."""

    detail: str


class Health(BaseModel):
    alive: bool
    ready: bool = Field(description="the model is loaded and compiled, and the service is not stopping")
    model: str | None
    waiting: int = Field(description="scans in the queue")


class Verdict(BaseModel):
    kind: Literal["sound", "defective", "cannot tell"]
    p_value: float | None
    threshold: float | None
    point_threshold: float | None
    reason: str


class Part(BaseModel):
    name: str
    score: float | None
    highest_point_score: float | None
    rows: int
    points: int
    removed: int
    suspicious_points: int | None = Field(description="points above the threshold for points; null without good parts")
    highest_at: list[float] | None = Field(description="x, y, z of the point with the highest score, in the scan's coordinates")
    verdict: Verdict | None = Field(description="null without good parts: scores then are a ranking")
    notes: list[str] = Field(description="what was understood of the file and taken away")
    ply: str = Field(description="link to the scan with a score a point")


class Result(BaseModel):
    """A scan that was inspected."""

    id: str
    state: Literal["done"]
    name: str
    score: float = Field(description="the highest of its parts; higher is more anomalous")
    verdict: Literal["sound", "defective", "cannot tell"] | None
    parts: list[Part]
    link: str
    page: str = Field(description="link to a page with a rotatable heat map")
    expires_in: int = Field(description="seconds after which the links lead nowhere")


class Pending(BaseModel):
    """A scan that waits or is worked on."""

    id: str
    state: Literal["waiting", "working"]
    name: str
    ahead: int = Field(description="scans that come first")
    link: str
