"""One way to account for every key of a weight file: missing, unexpected and misshapen ones are told together, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from data_pipelines.command import plain

SHOWN = 20  # names per kind in a message; the rest is counted


class WeightsError(ValueError):
    """A weight file that cannot be used. The message is one line: what is wrong, where, what to do."""

    def __init__(self, message: object = ""):
        super().__init__(plain(message))


def listed(names: Iterable[str], shown: int = SHOWN) -> str:
    """'a, b, c and 4 more' of `names`, in their order."""
    names = list(names)
    text = ", ".join(plain(name, 200) for name in names[:shown])
    return text if len(names) <= shown else f"{text} and {len(names) - shown} more"


def check_keys(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], where: str,
               advice: str = "") -> None:
    """Compares names and shapes; raises one `WeightsError` that names every kind of difference.

    Args:
        found: name -> shape, as the file has them.
        wanted: name -> shape, as the model has them.
        where: the file, for the message.
        advice: what the user can do, appended to the message.
    """
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [f"{name} {tuple(found[name])} instead of {tuple(shape)}"
                 for name, shape in wanted.items() if name in found and tuple(found[name]) != tuple(shape)]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    parts = [f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds if names]
    if parts:
        raise WeightsError(f"{where}: keys do not fit: " + "; ".join(parts) + (f". {advice}" if advice else ""))
