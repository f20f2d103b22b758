"""The console command `gsclip`: every command of the project under one name. `python -m ...` of each stays as it is."""

from __future__ import annotations

import importlib
import sys

import typer

from data_pipelines.command import command

# name -> (module with `main`, what it does). Modules are imported when asked for: TensorFlow and JAX take seconds.
COMMANDS = {
    "run": ("experiments.run", "Train and evaluate what a configuration describes."),
    "sweep": ("experiments.sweep", "Run a grid of configurations."),
    "tables": ("experiments.tables", "Tables of finished runs, beside published numbers."),
    "prepare": ("data_pipelines.prepare", "Render a data set into records, checked."),
    "convert": ("gsclip_jax.convert.__main__", "Convert weights of others into the project's format."),
    "parity": ("gsclip_jax.parity.__main__", "Compare with arrays recorded from the authors' code."),
    "inspect": ("gsclip_jax.inspection.command", "Inspect your own parts."),
    "calibrate": ("gsclip_jax.inspection.calibrate", "Score good parts, for verdicts on others."),
    "serve": ("gsclip_jax.service.command", "Inspect scans that others send over HTTP."),
    "doctor": ("experiments.doctor", "Devices, packages, weights and data: what is here, and what is missing."),
    "export": ("experiments.export", "Hand on a trained model in one small folder."),
}
app = typer.Typer(add_completion=False, no_args_is_help=True, help="Zero-shot 3D anomaly detection: GS-CLIP in JAX.")


def _add(name: str, module: str, what: str) -> None:
    # The options are those of the command itself, its --help included.
    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(name, help=what, context_settings=settings)
    def entry(context: typer.Context) -> None:
        sys.argv = [f"gsclip {name}", *context.args]  # commands that set up their process read it
        raise typer.Exit(command(importlib.import_module(module).main))


for _name, (_module, _what) in COMMANDS.items():
    _add(_name, _module, _what)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
