"""NVLinks: links that should be up and are not, and the errors of those that are up.

Links that are inactive by design (a card without its bridge) are recognised: the baseline never saw them up, the GPU's
peers have no more, and there is no NVSwitch that they could lead to.
"""

from __future__ import annotations

from gpuhealth.model.codes import define
from gpuhealth.model.context import RuleResult
from gpuhealth.model.finding import Action, Severity
from gpuhealth.model.history import key as history_key
from gpuhealth.model.missing import Missing, MissingReason
from gpuhealth.monitors.nvidia.context import GpuContext, per_gpu
from gpuhealth.monitors.nvidia.readings import GpuReadings, NvLink

DOWN = define(
    "nvlink.down",
    Severity.CRITICAL,
    Action.RESET_GPU,
    meaning="An NVLink that was up, or that the GPU's peers have up, is down: programs that use several GPUs fail or"
    " crawl over PCI Express.",
    advice="Look for XID 74 and SXids in the kernel log and at the fabric manager; reset the GPUs (or reboot the node)."
    " If it stays, have GPU, baseboard or bridge inspected.",
    quarantine=True,
    drain=True,
)
ERRORS = define(
    "nvlink.errors",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="An NVLink has many errors: it repeats transfers or retrains, and collective operations slow down.",
    advice="Run a burn-in with collectives; reset the GPU, and have the link's two ends inspected if it comes back.",
    clear_after=600.0,
)
BER = define(
    "nvlink.ber",
    Severity.WARNING,
    Action.INSPECT_HARDWARE,
    meaning="The bit error rate that remains on an NVLink after its error correction is too high.",
    advice="Reset the GPU; on links that leave the tray clean or replace cable and connector.",
    clear_after=600.0,
)


def _is_up(link: NvLink) -> bool:
    return not isinstance(link.state, Missing) and link.state != 0  # 1 active, 2 asleep, 3 active without traffic


def _up(gpu: GpuReadings) -> set[int] | Missing:
    """The links that are up; Missing if the state of one is unknown."""
    if isinstance(gpu.nvlinks, Missing):
        return gpu.nvlinks
    for link in gpu.nvlinks:
        if isinstance(link.state, Missing):
            return link.state
    return {link.link for link in gpu.nvlinks if _is_up(link)}


def _down(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    up = _up(gpu)
    before = set(context.baseline.active_links.get(gpu.id, []))
    if isinstance(up, Missing):
        if up.reason is not MissingReason.NOT_SUPPORTED or not before:
            return up
        up = set()  # a driver configured not to use NVLink reports none
    if gpu.mig_enabled is True and not up:
        return Missing(MissingReason.NOT_SUPPORTED, "some models use no NVLink while MIG is on")
    if lost := before - up:
        return _links_down(gpu, context, lost, "up before")
    peers = [len(links) for peer in context.peers(gpu) if not isinstance(links := _up(peer), Missing)]
    more = [count for count in peers if count > len(up)]
    if 2 * len(more) > len(peers) + 1:  # most GPUs of the model, itself counted among them
        down = {} if isinstance(gpu.nvlinks, Missing) else {link.link for link in gpu.nvlinks if not _is_up(link)}
        return _links_down(gpu, context, set(down), f"most GPUs of its model have at least {min(more)} up")
    pci = context.readings.pci
    switches = not isinstance(pci, Missing) and any(device.is_nvswitch for device in pci)
    if switches and not up and not isinstance(gpu.nvlinks, Missing):
        return _links_down(gpu, context, {link.link for link in gpu.nvlinks}, "the node has NVSwitches")
    return None


def _links_down(gpu: GpuReadings, context: GpuContext, links: set[int], why: str) -> RuleResult:
    every = not isinstance(gpu.nvlinks, Missing) and len(links) == len(gpu.nvlinks)
    listing = f"all {len(links)}" if every else ", ".join(map(str, sorted(links)))
    message = f"NVLinks down: {listing} ({why})"
    return context.found(
        DOWN, gpu, message, source="nvmlDeviceGetNvLinkState", reading=f"down: {listing}", threshold=why
    )


def _errors(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    if isinstance(gpu.nvlinks, Missing):
        return gpu.nvlinks
    settings = context.settings.nvlink
    bad, first_look = [], False
    for link in gpu.nvlinks:
        if not link.errors:
            continue
        key = history_key(ERRORS.name, gpu.component, link.link)
        grown = context.history.counter_increase(key, sum(link.errors.values()), context.now, settings.window)
        first_look |= not grown.seconds
        if grown.amount > settings.errors:
            kinds = ", ".join(f"{name} {count}" for name, count in link.errors.items() if count)
            bad.append(f"link {link.link}: {grown.amount} (since the driver was loaded: {kinds})")
    if bad:
        listing = "; ".join(bad)
        return context.found(
            ERRORS,
            gpu,
            f"NVLink errors within {settings.window / 60:g} min: {listing}",
            source="nvmlDeviceGetNvLinkErrorCounter, NVML fields 206-215",
            reading=listing,
            threshold=f"{settings.errors} a link",
        )
    if not any(link.errors for link in gpu.nvlinks):
        return Missing(MissingReason.NOT_SUPPORTED, "the links count no errors")
    return Missing(MissingReason.NO_HISTORY) if first_look else None


def _ber(gpu: GpuReadings, context: GpuContext) -> RuleResult:
    if isinstance(gpu.nvlinks, Missing):
        return gpu.nvlinks
    limit = context.settings.nvlink.effective_ber
    # A link whose state is unknown may be up.
    rates = {link.link: link.effective_ber for link in gpu.nvlinks if _is_up(link) or isinstance(link.state, Missing)}
    bad = {link: rate for link, rate in rates.items() if not isinstance(rate, Missing) and rate > limit}
    if not bad:
        unread = [rate for rate in rates.values() if isinstance(rate, Missing)]
        return unread[0] if unread else None
    listing = ", ".join(f"link {link} {rate:.1e}" for link, rate in bad.items())
    return context.found(
        BER,
        gpu,
        f"effective bit error rate too high: {listing}",
        source="NVML field 220",
        reading=listing,
        threshold=f"{limit:.0e}",
    )


CHECK = per_gpu((DOWN, _down), (ERRORS, _errors), (BER, _ber))
