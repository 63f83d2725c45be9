"""`python -m gpuhealth`: the same as the command `gpuhealth`."""

import sys

from gpuhealth.cli.main import run

if __name__ == "__main__":
    sys.exit(run())
