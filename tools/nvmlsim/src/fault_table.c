/* What each fault does. */
#include "fault_table.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "names.h"

bool argument_text(const char *arguments, const char *name, char *text, size_t size)
{
    size_t length = strlen(name);
    for (const char *word = arguments; *word; word += strspn(word, " ")) {
        size_t end = strcspn(word, " ");
        if (strncmp(word, name, length) == 0 && word[length] == '=') {
            snprintf(text, size, "%.*s", (int)(end - length - 1), word + length + 1);
            return true;
        }
        word += end;
    }
    return false;
}

int64_t argument(const char *arguments, const char *name, int64_t otherwise)
{
    char text[64];
    int64_t number;
    return argument_text(arguments, name, text, sizeof text) && number_parse(text, &number) ? number : otherwise;
}

static bool argument_is(const char *arguments, const char *name, const char *expected)
{
    char text[64];
    return argument_text(arguments, name, text, sizeof text) && strcmp(text, expected) == 0;
}

/* ---- faults of a GPU: what they make of its values ---- */

static void lost(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    gpu->lost = 1;
}

static void drop(struct gpu *gpu, const char *arguments)
{
    gpu->present = 0;
    gpu->on_bus = argument(arguments, "bus", 0);
    gpu->device_node = argument(arguments, "node", 0);
}

static void passthrough(struct gpu *gpu, const char *arguments)
{
    gpu->present = 0;
    gpu->handed_over = 1;
    gpu->device_node = argument(arguments, "node", 0);
}

static void reset_required(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    gpu->reset_required = 1;
    gpu->recovery_action = 1;
}

static void corrupted_inforom(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    gpu->inforom_corrupted = 1;
}

static void ecc_errors(struct gpu *gpu, const char *arguments, int type)
{
    int64_t count = argument(arguments, "count", 1);
    bool sram = argument_is(arguments, "location", "sram");
    int location = sram ? NVML_MEMORY_LOCATION_SRAM : NVML_MEMORY_LOCATION_DRAM;
    gpu->ecc.count[NVML_VOLATILE_ECC][type][location] += count;
    gpu->ecc.count[NVML_AGGREGATE_ECC][type][location] += count;
    if (sram && type == NVML_MEMORY_ERROR_TYPE_UNCORRECTED) {
        gpu->sram.volatile_secded += count;
        gpu->sram.aggregate_secded += count;
        gpu->sram.bucket_sm += count;
    }
}

static void ecc_uncorrectable(struct gpu *gpu, const char *arguments)
{
    ecc_errors(gpu, arguments, NVML_MEMORY_ERROR_TYPE_UNCORRECTED);
}

static void ecc_corrected(struct gpu *gpu, const char *arguments)
{
    ecc_errors(gpu, arguments, NVML_MEMORY_ERROR_TYPE_CORRECTED);
}

static void sram_threshold(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    ecc_errors(gpu, "count=4 location=sram", NVML_MEMORY_ERROR_TYPE_UNCORRECTED);
    gpu->sram.threshold_exceeded = 1;
}

static void ecc_disabled(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    gpu->ecc.mode = gpu->ecc.pending = 0;
}

static void remap_pending(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    gpu->remap.pending = 1;
    gpu->remap.uncorrected_inactive++;
}

static void remap_failed(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    gpu->remap.failure = 1;
}

static void remap_reserve(struct gpu *gpu, const char *arguments)
{
    int64_t banks = argument(arguments, "banks", 1);
    gpu->remap.histogram.none += banks;
    gpu->remap.histogram.max -= banks;
    gpu->remap.uncorrected += 8 * banks; /* eight spare rows a bank */
}

static void retired_pages(struct gpu *gpu, const char *arguments)
{
    gpu->retired.sbe += argument(arguments, "sbe", 0);
    gpu->retired.dbe += argument(arguments, "dbe", 1);
}

static void retirement_pending(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    gpu->retired.dbe++;
    gpu->retired.pending = 1;
}

static void repair_pending(struct gpu *gpu, const char *arguments)
{
    if (argument_is(arguments, "kind", "tpc"))
        gpu->repair.tpc_pending = 1;
    else
        gpu->repair.channel_pending = 1;
}

static void unrepairable(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    gpu->unrepairable_memory = 1;
}

/* A GPU that is slowed down is at work. */
static void throttle(struct gpu *gpu, int bits)
{
    gpu->clocks_event_reasons = (gpu->clocks_event_reasons & ~CLOCKS_EVENT_GPU_IDLE) | bits;
    gpu->clocks.sm = gpu->clocks.graphics = gpu->max_clocks.sm / 2;
}

static void hw_slowdown(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    throttle(gpu, CLOCKS_EVENT_HW_SLOWDOWN);
}

static void hw_thermal(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    throttle(gpu, CLOCKS_EVENT_HW_SLOWDOWN | CLOCKS_EVENT_HW_THERMAL);
}

static void sw_thermal(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    throttle(gpu, CLOCKS_EVENT_SW_THERMAL);
}

static void power_brake(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    throttle(gpu, CLOCKS_EVENT_HW_SLOWDOWN | CLOCKS_EVENT_HW_POWER_BRAKE);
}

static void power_cap(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    throttle(gpu, CLOCKS_EVENT_SW_POWER_CAP);
}

static void overheat(struct gpu *gpu, const char *arguments)
{
    gpu->temperature = gpu->threshold.gpu_max - argument(arguments, "margin", 0);
}

static void memory_overheat(struct gpu *gpu, const char *arguments)
{
    gpu->memory_temperature = gpu->threshold.memory_max - argument(arguments, "margin", 0);
}

static void pcie_width(struct gpu *gpu, const char *arguments)
{
    gpu->pcie.width = argument(arguments, "width", gpu->pcie.max_width / 2);
}

static void pcie_generation(struct gpu *gpu, const char *arguments)
{
    gpu->pcie.generation = argument(arguments, "generation", gpu->pcie.max_generation - 1);
}

static void pcie_idle(struct gpu *gpu, const char *arguments)
{
    gpu->pcie.idle_generation = argument(arguments, "generation", 1);
}

static void pcie_replays(struct gpu *gpu, const char *arguments)
{
    int64_t count = argument(arguments, "count", 100);
    gpu->pcie.replays += count;
    gpu->pcie.naks_received += count;
    gpu->pcie.correctable += count;
    gpu->aer.correctable[1] += count; /* BadTLP */
}

static int find_name(const char *const *names, int count, const char *name)
{
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

bool aer_name_exists(const char *name)
{
    return find_name(aer_correctable_names, AER_CORRECTABLE, name) >= 0 ||
           find_name(aer_uncorrectable_names, AER_UNCORRECTABLE, name) >= 0;
}

static void aer_errors(struct gpu *gpu, const char *arguments)
{
    char kind[32];
    bool named = argument_text(arguments, "kind", kind, sizeof kind);
    bool fatal = argument_is(arguments, "severity", "fatal");
    int64_t count = argument(arguments, "count", 1);
    if (fatal || argument_is(arguments, "severity", "nonfatal")) {
        int index = find_name(aer_uncorrectable_names, AER_UNCORRECTABLE, named ? kind : "CmpltTO");
        if (index >= 0)
            (fatal ? gpu->aer.fatal : gpu->aer.nonfatal)[index] += count;
    } else {
        int index = find_name(aer_correctable_names, AER_CORRECTABLE, named ? kind : "BadTLP");
        if (index >= 0)
            gpu->aer.correctable[index] += count;
    }
}

/* Do something to the link of "link=N", or to all of the GPU's. */
static void each_link(struct gpu *gpu, const char *arguments, void (*change)(struct link *, const char *))
{
    int64_t only = argument(arguments, "link", -1);
    for (int i = 0; i < gpu->nvlink.links; i++)
        if (only < 0 || only == i)
            change(&gpu->link[i], arguments);
}

static void link_down(struct link *link, const char *arguments)
{
    link->state = argument(arguments, "state", 0);
}

static void nvlink_down(struct gpu *gpu, const char *arguments)
{
    each_link(gpu, arguments, link_down);
}

static void link_errors(struct link *link, const char *arguments)
{
    int64_t count = argument(arguments, "count", 100);
    link->errors.replay += count;
    link->errors.recovery += (count + 99) / 100;
    link->errors.crc_flit += count;
    link->errors.crc_data += count;
    link->counters.rcv_errors += count;
    link->counters.local_integrity_errors += count;
    link->counters.effective_errors += count;
    link->counters.symbol_errors += count;
    link->counters.recovery_events += (count + 99) / 100;
    link->counters.recovery_successful += (count + 99) / 100;
}

static void nvlink_errors(struct gpu *gpu, const char *arguments)
{
    each_link(gpu, arguments, link_errors);
}

static void link_ber(struct link *link, const char *arguments)
{
    /* mantissa x 10^-exponent */
    int64_t rate = argument(arguments, "mantissa", 5) << 8 | argument(arguments, "exponent", 6);
    link->counters.effective_ber = link->counters.symbol_ber = link->counters.raw_ber = rate;
}

static void nvlink_ber(struct gpu *gpu, const char *arguments)
{
    each_link(gpu, arguments, link_ber);
}

static void fabric_incomplete(struct gpu *gpu, const char *arguments)
{
    gpu->fabric.state = argument(arguments, "state", 2);
    gpu->fabric.status = argument(arguments, "status", NVML_SUCCESS);
}

static void fabric_unhealthy(struct gpu *gpu, const char *arguments)
{
    /* Bandwidth is degraded and a route unhealthy: 1 ("true") in bits 0-1 and 4-5. */
    gpu->fabric.health_mask = argument(arguments, "mask", (gpu->fabric.health_mask & ~0x33) | 0x11);
    gpu->fabric.health_summary = argument(arguments, "summary", 2);
}

static void recovery_action(struct gpu *gpu, const char *arguments)
{
    gpu->recovery_action = argument(arguments, "value", 1);
}

static void persistence_off(struct gpu *gpu, const char *arguments)
{
    (void)arguments;
    gpu->persistence_mode = 0;
}

static void leaked_memory(struct gpu *gpu, const char *arguments)
{
    gpu->memory.used += argument(arguments, "mib", 10240) << 20;
}

static void process(struct gpu *gpu, const char *arguments)
{
    int64_t used = argument(arguments, "mib", 1024) << 20;
    gpu->memory.used += used;
    for (int i = 0; i < MAX_PROCESSES; i++)
        if (gpu->process[i].pid == 0) {
            gpu->process[i].pid = argument(arguments, "pid", 1);
            gpu->process[i].graphics = argument(arguments, "graphics", 0);
            gpu->process[i].used_memory = used;
            gpu->process[i].gpu_instance = gpu->process[i].compute_instance = 0xffffffff;
            return;
        }
}

static void busy(struct gpu *gpu, const char *arguments)
{
    char owner[64];
    snprintf(owner, sizeof owner, "pid=%lld mib=%lld", (long long)argument(arguments, "pid", 1),
             (long long)(gpu->memory.total >> 20) / 2);
    process(gpu, owner);
    gpu->utilization.gpu = argument(arguments, "utilization", 100);
    gpu->utilization.memory = 60;
    gpu->clocks_event_reasons = gpu->clocks_event_reasons & ~CLOCKS_EVENT_GPU_IDLE;
    gpu->clocks.graphics = gpu->clocks.sm = (int64_t)gpu->max_clocks.sm;
    gpu->clocks.mem = (int64_t)gpu->max_clocks.mem;
    gpu->clocks.video = (int64_t)gpu->max_clocks.video;
    gpu->power.usage = gpu->power.limit * 9 / 10;
    gpu->temperature = gpu->threshold.gpu_max - 25;
    gpu->memory_temperature = gpu->threshold.memory_max - 20;
    gpu->performance_state = 0;
}

static void straggler(struct gpu *gpu, const char *arguments)
{
    busy(gpu, arguments);
    gpu->clocks.graphics = gpu->clocks.sm = gpu->max_clocks.sm * argument(arguments, "percent", 50) / 100;
}

static void mig(struct gpu *gpu, const char *arguments)
{
    model_set_mig(gpu, (int)argument(arguments, "count", gpu->mig.max_devices));
}

/* ---- faults of calls: the rule that they put between program and answer ---- */

static void error_rule(struct rule *rule, const char *arguments)
{
    rule->code = argument(arguments, "code", NVML_ERROR_UNKNOWN);
    rule->count = argument(arguments, "count", -1);
    rule->kind = RULE_ERROR;
}

static void init_failure(struct rule *rule, const char *arguments)
{
    strcpy(rule->call, "nvmlInit");
    rule->code = argument(arguments, "code", NVML_ERROR_DRIVER_NOT_LOADED);
    rule->count = argument(arguments, "count", -1);
    rule->kind = RULE_ERROR;
}

static void driver_mismatch(struct rule *rule, const char *arguments)
{
    (void)arguments;
    init_failure(rule, "code=18"); /* LIB_RM_VERSION_MISMATCH */
}

static void hang(struct rule *rule, const char *arguments)
{
    char seconds[32];
    double length = argument_text(arguments, "seconds", seconds, sizeof seconds) ? strtod(seconds, NULL) : 0;
    rule->until_ns = length > 0 ? monotonic_ns() + (int64_t)(length * 1e9) : 0;
    rule->kind = RULE_HANG;
}

static void slow(struct rule *rule, const char *arguments)
{
    rule->delay_ms = argument(arguments, "ms", 100);
    rule->kind = RULE_SLOW;
}

static void prints(struct rule *rule, const char *arguments)
{
    (void)arguments;
    rule->kind = RULE_PRINT;
}

static void crash(struct rule *rule, const char *arguments)
{
    (void)arguments;
    rule->kind = RULE_CRASH;
}

/* ---- the table ---- */

const struct fault faults[] = {
    {"lost", "", "fallen off the bus: calls return GPU_IS_LOST, also for a new handle", lost, NULL},
    {"drop", "bus=0 node=0", "not enumerated any more; bus=1 still in /sys, node=1 still in /dev", drop, NULL},
    {"passthrough", "node=0", "no fault: bound to vfio-pci for a virtual machine; node=1 still in /dev", passthrough, NULL},
    {"reset_required", "", "readings return RESET_REQUIRED, recovery action 1", reset_required, NULL},
    {"corrupted_inforom", "", "the InfoROM does not validate", corrupted_inforom, NULL},
    {"recovery_action", "value=1", "value of field 230 (2 reboot, 3 drain P2P, 4 drain and reset ...)", recovery_action,
     NULL},
    {"ecc_uncorrectable", "count=1 location=dram|sram", "uncorrected errors, volatile and aggregate", ecc_uncorrectable,
     NULL},
    {"ecc_corrected", "count=1 location=dram|sram", "corrected errors, volatile and aggregate", ecc_corrected, NULL},
    {"sram_threshold", "", "four uncorrected SRAM errors, and the flag that this is too many", sram_threshold, NULL},
    {"ecc_disabled", "", "ECC is off", ecc_disabled, NULL},
    {"remap_pending", "", "a row is to be remapped at the next reset", remap_pending, NULL},
    {"remap_failed", "", "a row could not be remapped", remap_failed, NULL},
    {"remap_reserve", "banks=1", "banks without a spare row left", remap_reserve, NULL},
    {"retired_pages", "sbe=0 dbe=1", "retired pages", retired_pages, NULL},
    {"retirement_pending", "", "a page is to be retired at the next reset", retirement_pending, NULL},
    {"repair_pending", "kind=channel|tpc", "a repair is to be done at the next reset", repair_pending, NULL},
    {"unrepairable", "", "memory that can not be repaired", unrepairable, NULL},
    {"hw_slowdown", "", "clocks-event bit and its time", hw_slowdown, NULL},
    {"hw_thermal", "", "the same, with the bit of HW slowdown", hw_thermal, NULL},
    {"sw_thermal", "", "the same", sw_thermal, NULL},
    {"power_brake", "", "the same, with the bit of HW slowdown", power_brake, NULL},
    {"power_cap", "", "the same; not a fault of the GPU", power_cap, NULL},
    {"overheat", "margin=0", "temperature up to that many degrees below the highest of operation", overheat, NULL},
    {"memory_overheat", "margin=0", "the same of the memory", memory_overheat, NULL},
    {"pcie_width", "width=HALF", "PCIe link narrower than it should be", pcie_width, NULL},
    {"pcie_generation", "generation=MAX-1", "PCIe link slower under load than it should be", pcie_generation, NULL},
    {"pcie_idle", "generation=1", "no fault: the PCIe link shifts down while the GPU is idle", pcie_idle, NULL},
    {"pcie_replays", "count=100", "PCIe replays, and the AER BadTLPs behind them", pcie_replays, NULL},
    {"aer", "severity=correctable|nonfatal|fatal kind=NAME count=1", "AER errors in sysfs", aer_errors, NULL},
    {"nvlink_down", "link=N|all state=0", "NVLinks that are not active", nvlink_down, NULL},
    {"nvlink_errors", "link=N|all count=100", "NVLink error counters", nvlink_errors, NULL},
    {"nvlink_ber", "link=N|all mantissa=5 exponent=6", "NVLink 5 bit error rates", nvlink_ber, NULL},
    {"fabric_incomplete", "state=2 status=0", "the GPU has not joined the fabric", fabric_incomplete, NULL},
    {"fabric_unhealthy", "mask=M summary=2", "the fabric says that it is degraded", fabric_unhealthy, NULL},
    {"persistence_off", "", "persistence mode is off", persistence_off, NULL},
    {"leaked_memory", "mib=10240", "memory in use with no process", leaked_memory, NULL},
    {"process", "pid=1 mib=1024 graphics=0", "a process on the GPU", process, NULL},
    {"busy", "pid=1 utilization=100", "no fault: at work, warm, at full clock", busy, NULL},
    {"straggler", "pid=1 percent=50", "at work at this share of the clock", straggler, NULL},
    {"mig", "count=MAX", "no fault: MIG is on, with that many devices", mig, NULL},
    {"error", "call=*|FUNCTION code=999 count=K", "the next K calls, or all, return the code", NULL, error_rule},
    {"init_failure", "code=9 count=K", "nvmlInit returns the code", NULL, init_failure},
    {"driver_mismatch", "", "nvmlInit returns LIB_RM_VERSION_MISMATCH", NULL, driver_mismatch},
    {"hang", "seconds=forever call=*|FUNCTION", "calls return when the time is over, or on `release`", NULL, hang},
    {"prints", "call=*|FUNCTION", "the library prints a line to standard output and one to standard error", NULL, prints},
    {"crash", "call=*|FUNCTION", "the process that calls is ended by SIGSEGV", NULL, crash},
    {"slow", "ms=100 call=*|FUNCTION", "calls take that much longer", NULL, slow},
};
const int faults_known = sizeof faults / sizeof *faults;
