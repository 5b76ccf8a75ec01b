"""Write all sample data sets below the folder given on the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vae_anomaly.samples import WRITERS


def main() -> None:
    """Write every data set of ``WRITERS`` into a folder of its name."""
    parser = argparse.ArgumentParser(prog="python -m vae_anomaly.samples", description="Write all sample data sets.")
    parser.add_argument("folder", type=Path, help=f"folder that gets {', '.join(WRITERS)}")
    folder = parser.parse_args().folder
    for name, write in WRITERS.items():
        write(folder / name)
    sys.stdout.write(f"Wrote {', '.join(WRITERS)} below {folder}.\n")


if __name__ == "__main__":
    main()
