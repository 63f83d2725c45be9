"""`python -m gpuhealth`: the same as the command `gpuhealth`."""

from gpuhealth.cli.main import run

if __name__ == "__main__":
    run()
