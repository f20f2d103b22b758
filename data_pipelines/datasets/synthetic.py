"""The earlier name of `python -m data_pipelines.solids.synthetic`."""

import sys

if __name__ == "__main__":
    from data_pipelines.command import command
    from data_pipelines.solids.synthetic import main

    sys.exit(command(main))
