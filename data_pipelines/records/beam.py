"""The preparation as Apache Beam pipelines: scans to part files on many machines, and part files to the TFDS data set.

Every worker needs this package, and the scans and the cache folder under the same paths. Part files lie between the two pipelines
so that a pipeline that stopped continues with what is missing, and the rows are known before the first record is written.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from data_pipelines.datasets import open_reader
from data_pipelines.progress import EVERY_S, Progress
from data_pipelines.records.objects import BAD, Recipe, make_part
from data_pipelines.rendering.views import rasteriser
from data_pipelines.scan import DataError, Sample, did_you_mean

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise DataError("--beam needs Apache Beam, which is not installed (or not whole); it asks for an older protobuf than "
                    "requirements.lock has, so give it an environment of its own: pip install -r requirements-beam.txt "
                    f"({error})") from error


def pipeline_options(flags: Sequence[str], say: Callable[[str], None] | None = None) -> PipelineOptions:
    """Beam's options from its own flags; unknown ones are told to `say` and left to the runner.

    Raises:
      DataError: a flag whose value Beam refuses.
    """
    parser = beam.options.pipeline_options._BeamArgumentParser(allow_abbrev=False, exit_on_error=False)
    for group in PipelineOptions.__subclasses__():
        group._add_argparse_args(parser)
    try:
        _, unknown = parser.parse_known_args(list(flags))
        options = PipelineOptions(list(flags))
        options.get_all_options()
    except (Exception, SystemExit) as error:
        raise DataError(f"Beam's flags {' '.join(flags)}: {error}") from error
    known = [name for action in parser._actions for name in action.option_strings]
    for flag in unknown if say else ():
        say(f"Beam does not know {flag}{did_you_mean(flag.split('=')[0], known)}")
    return options


class MakePart(beam.DoFn):
    """(row, sample) -> row, once the part file of the scan, or its `.bad`, is there."""

    def __init__(self, spec: dict):
        self._spec = spec

    def setup(self) -> None:
        self._recipe = Recipe(**self._spec["recipe"])
        self._reader = open_reader(self._spec["name"], self._spec["root"], **self._spec["options"])
        # Its own, not the shared one: instances may work side by side in the threads of a process.
        self._draw = rasteriser.__wrapped__(self._recipe.window, self._recipe.rasteriser)

    def process(self, element: tuple[int, Sample]):
        row, sample = element
        path = Path(self._spec["parts"]) / f"{row}.npz"
        if not path.is_file():  # a runner may do a bundle twice
            bad = make_part(self._reader, sample, self._recipe, path, self._draw)
            if bad and not self._spec["skip_bad"]:
                raise DataError(bad)
        yield row


def render_parts(spec: dict, samples: list[Sample], missing: list[int], flags: Sequence[str], progress) -> None:
    """As `workers.render_parts`, by Beam. Raises DataError for the first unreadable scan, or with what Beam says."""
    parts = Path(spec["parts"])
    for row in missing:  # of an earlier run: they would be taken for this one's
        (parts / f"{row}{BAD}").unlink(missing_ok=True)
    over = threading.Event()
    say = Progress("rendering: {} of {} objects", len(samples), progress, len(samples) - len(missing), warm=1)

    def watch() -> None:
        while not over.wait(EVERY_S):
            say.update(len({path.stem for path in parts.iterdir() if path.suffix in (".npz", BAD)}))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    try:
        with beam.Pipeline(options=pipeline_options(flags, progress)) as pipeline:
            _ = (pipeline | "scans" >> beam.Create([(row, samples[row]) for row in missing])
                 | "spread" >> beam.Reshuffle() | "make" >> beam.ParDo(MakePart(spec)))
    except Exception as error:
        bad = [] if spec["skip_bad"] else sorted(parts.glob(f"*{BAD}"))
        if bad:
            raise DataError(json.loads(bad[0].read_text())["error"]) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DataError(f"Beam stopped: {lines[-1] if lines else repr(error)}") from error
    finally:
        over.set()
        thread.join()
    lost = [row for row in missing if not ((parts / f"{row}.npz").is_file() or (parts / f"{row}{BAD}").is_file())]
    if lost:
        raise DataError(f"{len(lost)} of {len(missing)} objects have no part under {parts}; Beam needs that folder under "
                        "the same path on every worker")
    say.update(len(samples))


def examples(rows: list[tuple[int, str, Sample, tuple[str, ...]]], example: Callable) -> beam.PTransform:
    """The records of part files, as TFDS's Beam support takes them. Rows: number, part file, sample, which optional fields it
    has; `example` makes one of a row's (tfds.example)."""
    return beam.Create(rows) | beam.MapTuple(example)
