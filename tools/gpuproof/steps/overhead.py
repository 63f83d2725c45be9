"""What the proofs of the test `exact` cost, in per cent of the products' own time, for each number format."""

from __future__ import annotations

import importlib.util
import json
import sys

from gpuproof.step import Context, Outcome, not_proved, proved

_SIZE, _PROCESSOR_SIZE = 4096, 512


def run(context: Context) -> Outcome:
    """A measurement without a limit: proved where at least one format could be measured."""
    if importlib.util.find_spec("torch") is None:
        return not_proved("PyTorch is not installed for this Python")
    device = {"all": "cuda:0"}.get(context.devices, context.devices.partition(",")[0])
    done = context.run([sys.executable, "-m", "gpuproof.steps.overhead", device, f"{context.left * 0.6:.1f}"])
    found = done.json
    if done.code or not isinstance(found, dict):
        return not_proved(f"not measured on {device}: {done.problem}")
    lines = [f"{name}: {value}" for name, value in found.items()]
    measured = {name: value for name, value in found.items() if isinstance(value, float)}
    if not measured:
        return not_proved(f"no format could be measured on {device}", *lines)
    worst = max(measured, key=lambda name: measured[name])
    sentence = f"{len(measured)} formats on {device}; at most {measured[worst]:.1f} % ({worst})"
    return proved(sentence, *lines, overhead_percent=measured, device=device)


def measure(name: str, seconds: float) -> dict[str, float | str]:
    """The overhead of each format in per cent, or why there is none. Runs in a process of its own: it loads torch."""
    import time

    from testing.exact_gemm import overhead

    from gpuhealth.burnin.device import Device, enable_deterministic_mode
    from gpuhealth.burnin.gemm import FORMATS, unavailable_reason

    enable_deterministic_mode()
    device, began = Device(name, name), time.monotonic()
    found: dict[str, float | str] = {}
    for form in FORMATS:
        if time.monotonic() - began > seconds:
            found[form.name] = "not measured: no time left"
        elif reason := unavailable_reason(form, device):
            found[form.name] = f"not supported here: {reason}"
        else:
            size = _SIZE if device.is_cuda else min(_PROCESSOR_SIZE, form.processor_size)
            found[form.name] = round(overhead(form, size, device), 2)
    return found


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], float(sys.argv[2]))))
