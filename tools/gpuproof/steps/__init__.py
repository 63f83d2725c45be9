"""The steps of a proof, in their order. Each fails alone, within a share of the time."""

from gpuproof.step import Step
from gpuproof.steps import agent, burnin, environment, health, overhead, readings

STEPS = (
    Step("environment", 5, environment.run),
    Step("check", 30, health.check),
    Step("replay", 40, health.replay),
    Step("readings", 60, readings.run),
    Step("agent", 95, agent.run),
    Step("burnin", 110, burnin.levels),
    Step("digests", 60, burnin.digests),
    Step("faults", 90, burnin.faults),
    Step("overhead", 45, overhead.run),
)
"""Names, shares of the time in seconds of nine minutes, and functions."""
