"""What a service takes on, and what it refuses: configuration as data."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of everything that a stranger may make large.

    Fields:
      bytes: of one scan's file.
      points: rows of one scan, also those that its header only says it has.
      seconds: to read, clean and draw one scan; the process that does so is then ended.
      memory: bytes that reading one scan may take beyond what the reading process has at rest.
      queue: scans that wait; more are refused (429).
      uploads: bodies that come in at the same time; more are refused (429).
      body_seconds: in which a body has to be there.
      keep: seconds after which a result goes.
      results: that are kept; the oldest go first.
      disk: bytes of results that are kept; the oldest go first.
    """

    bytes: int = 100 << 20
    points: int = 2_000_000
    seconds: float = 60.0
    memory: int = 4 << 30
    queue: int = 32
    uploads: int = 64
    body_seconds: float = 30.0
    keep: float = 3600.0
    results: int = 10_000
    disk: int = 4 << 30
