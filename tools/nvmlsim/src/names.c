/* The tables behind the dotted names. */
#include "names.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct name {
    const char *name;
    size_t offset;
    size_t size; /* of a string; 0: a number */
};

#define NODE_NUMBER(path) {#path, offsetof(struct node, path), 0}
#define NODE_STRING(path) {#path, offsetof(struct node, path), sizeof(((struct node *)0)->path)}
static const struct name node_names[] = {
    NODE_NUMBER(gpus),           NODE_NUMBER(switches),     NODE_NUMBER(switch_device_id), NODE_NUMBER(cuda_version),
    NODE_NUMBER(calls),          NODE_NUMBER(hanging),      NODE_STRING(driver_version),   NODE_STRING(nvml_version),
    NODE_STRING(cluster_uuid),   NODE_STRING(chassis_serial), NODE_STRING(tree),
};

#define LINK(path) {#path, offsetof(struct link, path), 0}
#define LINK_FEC(n) {"counters.fec" #n, offsetof(struct link, counters.fec[n]), 0}
static const struct name link_names[] = {
    LINK(state), LINK(version), LINK(speed_mbps), LINK(remote_type), LINK(remote_device), LINK(remote_link),
    LINK(errors.replay), LINK(errors.recovery), LINK(errors.crc_flit), LINK(errors.crc_data), LINK(errors.ecc),
    LINK(counters.xmit_packets), LINK(counters.xmit_bytes), LINK(counters.rcv_packets), LINK(counters.rcv_bytes),
    LINK(counters.malformed_packets), LINK(counters.buffer_overruns), LINK(counters.rcv_errors),
    LINK(counters.rcv_remote_errors), LINK(counters.rcv_general_errors), LINK(counters.local_integrity_errors),
    LINK(counters.xmit_discards), LINK(counters.recovery_successful), LINK(counters.recovery_failed),
    LINK(counters.recovery_events), LINK(counters.raw_ber), LINK(counters.effective_errors),
    LINK(counters.effective_ber), LINK(counters.symbol_errors), LINK(counters.symbol_ber),
    LINK_FEC(0), LINK_FEC(1), LINK_FEC(2), LINK_FEC(3), LINK_FEC(4), LINK_FEC(5), LINK_FEC(6), LINK_FEC(7),
    LINK_FEC(8), LINK_FEC(9), LINK_FEC(10), LINK_FEC(11), LINK_FEC(12), LINK_FEC(13), LINK_FEC(14), LINK_FEC(15),
};

#define PROCESS(path) {#path, offsetof(struct process, path), 0}
static const struct name process_names[] = {
    PROCESS(pid), PROCESS(used_memory), PROCESS(graphics), PROCESS(gpu_instance), PROCESS(compute_instance),
};

#define MIG(path) {#path, offsetof(struct mig_device, path), 0}
static const struct name mig_names[] = {
    MIG(present), MIG(gpu_instance), MIG(compute_instance), MIG(slices),
    MIG(memory),  MIG(used_memory),  MIG(multiprocessors),
};

#define NUMBER(path) {#path, offsetof(struct gpu, path), 0}
#define STRING(path) {#path, offsetof(struct gpu, path), sizeof(((struct gpu *)0)->path)}
#define CLOCKS(set) NUMBER(set.graphics), NUMBER(set.sm), NUMBER(set.mem), NUMBER(set.video)
#define THROTTLE(reason, index) {"throttle_ns." reason, offsetof(struct gpu, throttle_ns[index]), 0}
#define ECC_COUNT(counter_name, counter, type_name, type, location_name, location)                 \
    {"ecc." counter_name "." type_name "." location_name,                                          \
     offsetof(struct gpu, ecc.count[counter][type][NVML_MEMORY_LOCATION_##location]), 0}
#define ECC_COUNTS(counter_name, counter, type_name, type)                                         \
    ECC_COUNT(counter_name, counter, type_name, type, "l1", L1_CACHE),                             \
    ECC_COUNT(counter_name, counter, type_name, type, "l2", L2_CACHE),                             \
    ECC_COUNT(counter_name, counter, type_name, type, "dram", DRAM),                               \
    ECC_COUNT(counter_name, counter, type_name, type, "registers", REGISTER_FILE),                 \
    ECC_COUNT(counter_name, counter, type_name, type, "texture", TEXTURE_MEMORY),                  \
    ECC_COUNT(counter_name, counter, type_name, type, "shared", TEXTURE_SHM),                      \
    ECC_COUNT(counter_name, counter, type_name, type, "cbu", CBU),                                 \
    ECC_COUNT(counter_name, counter, type_name, type, "sram", SRAM)

static const struct name gpu_names[] = {
    STRING(name), STRING(uuid), STRING(serial), STRING(part_number), STRING(vbios), STRING(inforom_image),
    NUMBER(present), NUMBER(on_bus), NUMBER(device_node), NUMBER(handed_over), NUMBER(lost), NUMBER(reset_required),
    NUMBER(inforom_corrupted), NUMBER(recovery_action),
    NUMBER(brand), NUMBER(architecture), NUMBER(cores), NUMBER(memory_bus_bits), NUMBER(module_id), NUMBER(numa_node), NUMBER(board_id),
    NUMBER(cuda.major), NUMBER(cuda.minor),
    NUMBER(pci.domain), NUMBER(pci.bus), NUMBER(pci.device), NUMBER(pci.device_id), NUMBER(pci.subsystem_id),
    NUMBER(pcie.generation), NUMBER(pcie.idle_generation), NUMBER(pcie.max_generation),
    NUMBER(pcie.device_max_generation), NUMBER(pcie.width), NUMBER(pcie.max_width), NUMBER(pcie.replays),
    NUMBER(pcie.replay_rollovers), NUMBER(pcie.tx_kbps), NUMBER(pcie.rx_kbps), NUMBER(pcie.correctable),
    NUMBER(pcie.naks_received), NUMBER(pcie.receiver_errors), NUMBER(pcie.bad_tlp), NUMBER(pcie.naks_sent),
    NUMBER(pcie.bad_dllp), NUMBER(pcie.non_fatal), NUMBER(pcie.fatal), NUMBER(pcie.unsupported_requests),
    NUMBER(pcie.lcrc_errors), NUMBER(pcie.lane_errors), NUMBER(pcie.l0_to_recovery),
    NUMBER(port.correctable), NUMBER(port.nonfatal), NUMBER(port.fatal), NUMBER(virtualization_mode),
    NUMBER(addressing_mode),
    NUMBER(temperature), NUMBER(memory_temperature),
    NUMBER(threshold.shutdown), NUMBER(threshold.slowdown), NUMBER(threshold.memory_max), NUMBER(threshold.gpu_max),
    NUMBER(tlimit.shutdown), NUMBER(tlimit.slowdown), NUMBER(tlimit.memory_max), NUMBER(tlimit.gpu_max),
    NUMBER(power.usage), NUMBER(power.limit), NUMBER(power.default_limit), NUMBER(power.min_limit),
    NUMBER(power.max_limit), NUMBER(power.enforced_limit), NUMBER(energy),
    CLOCKS(clocks), CLOCKS(max_clocks), CLOCKS(application_clocks), CLOCKS(default_application_clocks),
    NUMBER(clocks_event_reasons), NUMBER(supported_clocks_event_reasons), NUMBER(performance_state),
    THROTTLE("power_cap", THROTTLE_POWER_CAP), THROTTLE("sync_boost", THROTTLE_SYNC_BOOST),
    THROTTLE("hw_slowdown", THROTTLE_HW_SLOWDOWN), THROTTLE("sw_thermal", THROTTLE_SW_THERMAL),
    THROTTLE("hw_thermal", THROTTLE_HW_THERMAL), THROTTLE("power_brake", THROTTLE_POWER_BRAKE),
    NUMBER(utilization.gpu), NUMBER(utilization.memory),
    NUMBER(memory.total), NUMBER(memory.reserved), NUMBER(memory.used), NUMBER(bar1.total), NUMBER(bar1.used),
    NUMBER(ecc.mode), NUMBER(ecc.pending),
    ECC_COUNTS("volatile", NVML_VOLATILE_ECC, "corrected", NVML_MEMORY_ERROR_TYPE_CORRECTED),
    ECC_COUNTS("volatile", NVML_VOLATILE_ECC, "uncorrected", NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
    ECC_COUNTS("aggregate", NVML_AGGREGATE_ECC, "corrected", NVML_MEMORY_ERROR_TYPE_CORRECTED),
    ECC_COUNTS("aggregate", NVML_AGGREGATE_ECC, "uncorrected", NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
    NUMBER(sram.volatile_parity), NUMBER(sram.volatile_secded), NUMBER(sram.aggregate_parity),
    NUMBER(sram.aggregate_secded), NUMBER(sram.bucket_l2), NUMBER(sram.bucket_sm), NUMBER(sram.bucket_pcie),
    NUMBER(sram.bucket_mcu), NUMBER(sram.bucket_other), NUMBER(sram.threshold_exceeded),
    NUMBER(remap.corrected), NUMBER(remap.uncorrected), NUMBER(remap.corrected_inactive),
    NUMBER(remap.uncorrected_inactive), NUMBER(remap.pending), NUMBER(remap.failure), NUMBER(remap.histogram.max),
    NUMBER(remap.histogram.high), NUMBER(remap.histogram.partial), NUMBER(remap.histogram.low),
    NUMBER(remap.histogram.none),
    NUMBER(bank_remap.active), NUMBER(bank_remap.inactive), NUMBER(bank_remap.pending),
    NUMBER(bank_remap.histogram_max), NUMBER(bank_remap.histogram_none),
    NUMBER(retired.sbe), NUMBER(retired.dbe), NUMBER(retired.pending),
    NUMBER(repair.channel_pending), NUMBER(repair.tpc_pending), NUMBER(unrepairable_memory),
    NUMBER(persistence_mode), NUMBER(compute_mode), NUMBER(mig.mode), NUMBER(mig.pending), NUMBER(mig.max_devices),
    NUMBER(nvlink.links), NUMBER(fabric.state), NUMBER(fabric.status), NUMBER(fabric.clique),
    NUMBER(fabric.health_mask), NUMBER(fabric.health_summary),
    NUMBER(c2c.links), NUMBER(c2c.max_bandwidth), NUMBER(c2c.status), NUMBER(c2c.errors), NUMBER(c2c.replays),
    NUMBER(c2c.replays_back_to_back),
    NUMBER(platform.slot), NUMBER(platform.tray), NUMBER(platform.host), NUMBER(platform.peer_type),
    NUMBER(supports.ecc), NUMBER(supports.sram_ecc_status), NUMBER(supports.row_remap), NUMBER(supports.bank_remap),
    NUMBER(supports.retired_pages), NUMBER(supports.repair_status), NUMBER(supports.unrepairable_memory),
    NUMBER(supports.memory_temperature), NUMBER(supports.margin_temperature), NUMBER(supports.throttle_time),
    NUMBER(supports.power_average), NUMBER(supports.nvlink_errors), NUMBER(supports.nvlink_counters),
    NUMBER(supports.fabric), NUMBER(supports.recovery_action), NUMBER(supports.mig), NUMBER(supports.platform),
    NUMBER(supports.pcie_counters),
};

#define COUNT(table) (sizeof(table) / sizeof *(table))

/* The parts of a GPU that there are several of. */
static const struct part {
    const char *prefix;
    const struct name *names;
    size_t count, offset, size;
    int number;
} parts[] = {
    {"link", link_names, COUNT(link_names), offsetof(struct gpu, link), sizeof(struct link), MAX_LINKS},
    {"process", process_names, COUNT(process_names), offsetof(struct gpu, process), sizeof(struct process),
     MAX_PROCESSES},
    {"mig", mig_names, COUNT(mig_names), offsetof(struct gpu, mig_device), sizeof(struct mig_device),
     MAX_MIG_DEVICES},
};

/* The kernel's names for the bits of the AER status registers, in its order. */
const char *const aer_correctable_names[AER_CORRECTABLE] = {
    "RxErr", "BadTLP", "BadDLLP", "Rollover", "Timeout", "NonFatalErr", "CorrIntErr", "HeaderOF",
};
const char *const aer_uncorrectable_names[AER_UNCORRECTABLE] = {
    "Undefined", "DLP",      "SDES",      "TLP",    "FCP",        "CmpltTO",      "CmpltAbrt",  "UnxCmplt",      "RxOF",
    "MalfTLP",   "ECRC",     "UnsupReq",  "ACSViol", "UncorrIntErr", "BlockedTLP", "AtomicOpBlocked", "TLPBlockedErr",
    "PoisonTLPBlocked",
};

static const struct aer_group {
    const char *prefix;
    size_t offset;
    const char *const *names;
    int number;
} aer_groups[] = {
    {"aer.correctable.", offsetof(struct gpu, aer.correctable), aer_correctable_names, AER_CORRECTABLE},
    {"aer.nonfatal.", offsetof(struct gpu, aer.nonfatal), aer_uncorrectable_names, AER_UNCORRECTABLE},
    {"aer.fatal.", offsetof(struct gpu, aer.fatal), aer_uncorrectable_names, AER_UNCORRECTABLE},
};

/* Where a search is: below what, of which GPU, and what to do with what is found. */
struct search {
    char prefix[64]; /* "gpu3.link4." */
    struct gpu *gpu;
    visit_value *visit;
    void *context;
};

static int find_in_table(const struct search *search, const struct name *table, size_t count, void *base,
                         const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(table[i].name, name) != 0)
            continue;
        char *address = (char *)base + table[i].offset, full[128];
        snprintf(full, sizeof full, "%s%s", search->prefix, name);
        struct named_value found = {
            .name = full,
            .gpu = search->gpu,
            .number = table[i].size ? NULL : (value *)address,
            .string = table[i].size ? address : NULL,
            .size = table[i].size,
        };
        search->visit(&found, search->context);
        return 1;
    }
    return 0;
}

/*
 * Take "<prefix><number or *>." off the name. The range of numbers is [*first, *end), cut to the limit; NULL when the
 * name does not begin so.
 */
static const char *take_number(const char *name, const char *prefix, int limit, int *first, int *end)
{
    size_t length = strlen(prefix);
    if (strncmp(name, prefix, length) != 0)
        return NULL;
    const char *rest = name + length;
    if (rest[0] == '*' && rest[1] == '.') {
        *first = 0;
        *end = limit;
        return rest + 2;
    }
    char *stop;
    long number = strtol(rest, &stop, 10);
    if (stop == rest || *stop != '.')
        return NULL;
    *first = number >= 0 && number < limit ? (int)number : limit;
    *end = number >= 0 && number < limit ? (int)number + 1 : limit;
    return stop + 1;
}

/* "link4.state": the part's prefix, its numbers, and a name of its table. */
static int find_in_part(const struct search *search, const struct part *part, const char *name, bool *is_part)
{
    struct gpu *gpu = search->gpu;
    int limit = part->number, first, end, found = 0;
    if (part->names == link_names && strncmp(name, "link*", 5) == 0)
        limit = (int)gpu->nvlink.links; /* * means the links that the GPU has */
    const char *rest = take_number(name, part->prefix, limit, &first, &end);
    *is_part = rest != NULL;
    for (int number = first; rest && number < end; number++) {
        struct search below = *search;
        snprintf(below.prefix, sizeof below.prefix, "%.24s%s%d.", search->prefix, part->prefix, number);
        void *base = (char *)gpu + part->offset + (size_t)number * part->size;
        found += find_in_table(&below, part->names, part->count, base, rest);
    }
    return found;
}

static int find_in_gpu(const struct search *search, const char *name)
{
    for (size_t i = 0; i < COUNT(parts); i++) {
        bool is_part;
        int found = find_in_part(search, &parts[i], name, &is_part);
        if (is_part)
            return found;
    }
    for (size_t i = 0; i < COUNT(aer_groups); i++) {
        const struct aer_group *group = &aer_groups[i];
        if (strncmp(name, group->prefix, strlen(group->prefix)) != 0)
            continue;
        struct search below = *search;
        snprintf(below.prefix, sizeof below.prefix, "%.24s%s", search->prefix, group->prefix);
        for (int number = 0; number < group->number; number++) {
            struct name entry = {group->names[number], group->offset + (size_t)number * sizeof(value), 0};
            if (find_in_table(&below, &entry, 1, search->gpu, name + strlen(group->prefix)))
                return 1;
        }
    }
    return find_in_table(search, gpu_names, COUNT(gpu_names), search->gpu, name);
}

int names_find_in_gpu(struct gpu *gpu, const char *name, visit_value *visit, void *context)
{
    struct search search = {"", gpu, visit, context};
    return find_in_gpu(&search, name);
}

int names_find(struct state *state, const char *name, visit_value *visit, void *context)
{
    struct search search = {"node.", NULL, visit, context};
    if (strncmp(name, "node.", 5) == 0)
        return find_in_table(&search, node_names, COUNT(node_names), &state->node, name + 5);
    int first, end, found = 0;
    const char *rest = take_number(name, "gpu", (int)state->node.gpus, &first, &end);
    for (int slot = first; rest && slot < end; slot++) {
        search.gpu = &state->gpu[slot];
        snprintf(search.prefix, sizeof search.prefix, "gpu%d.", slot);
        found += find_in_gpu(&search, rest);
    }
    return found;
}

void names_print(void)
{
    for (size_t i = 0; i < COUNT(node_names); i++)
        printf("node.%s\n", node_names[i].name);
    for (size_t i = 0; i < COUNT(gpu_names); i++)
        printf("gpu*.%s\n", gpu_names[i].name);
    for (size_t i = 0; i < COUNT(aer_groups); i++)
        for (int number = 0; number < aer_groups[i].number; number++)
            printf("gpu*.%s%s\n", aer_groups[i].prefix, aer_groups[i].names[number]);
    for (size_t i = 0; i < COUNT(parts); i++)
        for (size_t k = 0; k < parts[i].count; k++)
            printf("gpu*.%s*.%s\n", parts[i].prefix, parts[i].names[k].name);
}

bool number_parse(const char *text, int64_t *number)
{
    char *stop;
    errno = 0;
    *number = strtoll(text, &stop, 0);
    return errno == 0 && stop != text && *stop == '\0';
}

bool named_value_set(const struct named_value *found, const char *text)
{
    if (found->string) {
        if (strlen(text) >= found->size)
            return false;
        strcpy(found->string, text);
        return true;
    }
    int64_t number;
    if (!number_parse(text, &number))
        return false;
    *found->number = number;
    return true;
}
