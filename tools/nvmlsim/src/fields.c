/* nvmlDeviceGetFieldValues: readings by number, each with its own type and return code. */
#define _GNU_SOURCE
#include <time.h>

#include "library.h"

enum { FIELD_ALL_LINKS = 0xffffffff, FIELD_MAX = 308 };

static nvmlReturn_t put_uint(nvmlFieldValue_t *field, int64_t number)
{
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
    field->value.ullVal = 0;
    field->value.uiVal = (unsigned int)number;
    return NVML_SUCCESS;
}

static nvmlReturn_t put_int(nvmlFieldValue_t *field, int64_t number)
{
    field->valueType = NVML_VALUE_TYPE_SIGNED_INT;
    field->value.ullVal = 0;
    field->value.siVal = (int)number;
    return NVML_SUCCESS;
}

static nvmlReturn_t put_ull(nvmlFieldValue_t *field, int64_t number)
{
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    field->value.ullVal = (unsigned long long)number;
    return NVML_SUCCESS;
}

#define FIELD(number, condition, put, expression) \
    case number:                                  \
        REQUIRE_SUPPORT(condition);               \
        return put(field, expression)

/* Sum of one value of every link; `offset` is its place in struct link. */
static int64_t sum_of_links(struct gpu *gpu, size_t offset)
{
    int64_t sum = 0;
    for (int i = 0; i < gpu->nvlink.links; i++)
        sum += *(value *)((char *)&gpu->link[i] + offset);
    return sum;
}

/* One value of the link that the scope names, or of all. */
static nvmlReturn_t put_link(struct gpu *gpu, nvmlFieldValue_t *field, size_t offset)
{
    REQUIRE_SUPPORT(gpu->nvlink.links > 0);
    if (field->scopeId == FIELD_ALL_LINKS)
        return put_ull(field, sum_of_links(gpu, offset));
    REQUIRE_ARGUMENT(field->scopeId < gpu->nvlink.links);
    return put_ull(field, *(value *)((char *)&gpu->link[field->scopeId] + offset));
}

/* Counts of NVLinks 0 to 5, their total, and links 6 to 11, which came later and elsewhere. */
static const struct link_series {
    unsigned first, total, second;
    size_t offset;
} link_series[] = {
    {32, 38, 96, offsetof(struct link, errors.crc_flit)},   {39, 45, 102, offsetof(struct link, errors.crc_data)},
    {46, 52, 108, offsetof(struct link, errors.replay)},    {53, 59, 114, offsetof(struct link, errors.recovery)},
    {148, 160, 154, offsetof(struct link, errors.ecc)},
};

static nvmlReturn_t read_link_series(struct gpu *gpu, nvmlFieldValue_t *field, const struct link_series *series)
{
    REQUIRE_SUPPORT(gpu->supports.nvlink_errors);
    if (field->fieldId == series->total)
        return put_ull(field, sum_of_links(gpu, series->offset));
    unsigned link = field->fieldId >= series->second ? field->fieldId - series->second + 6
                                                     : field->fieldId - series->first;
    REQUIRE_SUPPORT(link < gpu->nvlink.links);
    return put_ull(field, *(value *)((char *)&gpu->link[link] + series->offset));
}

static const struct link_series *find_link_series(unsigned id)
{
    for (size_t i = 0; i < sizeof link_series / sizeof *link_series; i++) {
        const struct link_series *series = &link_series[i];
        if (id == series->total || (id >= series->first && id < series->first + 6) ||
            (id >= series->second && id < series->second + 6))
            return series;
    }
    return NULL;
}

/* Counters of NVLink 5, by link: field 201 and following. */
static const size_t link_counters[] = {
    offsetof(struct link, counters.xmit_packets),
    offsetof(struct link, counters.xmit_bytes),
    offsetof(struct link, counters.rcv_packets),
    offsetof(struct link, counters.rcv_bytes),
    0, /* 205, deprecated */
    offsetof(struct link, counters.malformed_packets),
    offsetof(struct link, counters.buffer_overruns),
    offsetof(struct link, counters.rcv_errors),
    offsetof(struct link, counters.rcv_remote_errors),
    offsetof(struct link, counters.rcv_general_errors),
    offsetof(struct link, counters.local_integrity_errors),
    offsetof(struct link, counters.xmit_discards),
    offsetof(struct link, counters.recovery_successful),
    offsetof(struct link, counters.recovery_failed),
    offsetof(struct link, counters.recovery_events),
    0, /* 216-218, deprecated */
    0,
    0,
    offsetof(struct link, counters.effective_errors),
    offsetof(struct link, counters.effective_ber),
    offsetof(struct link, counters.symbol_errors),
    offsetof(struct link, counters.symbol_ber),
};
enum { FIELD_RAW_BER = 293 };

static nvmlReturn_t read_link_field(struct gpu *gpu, nvmlFieldValue_t *field)
{
    unsigned id = field->fieldId;
    if (id >= 201 && id <= 222) {
        REQUIRE_SUPPORT(gpu->supports.nvlink_counters && link_counters[id - 201]);
        return put_link(gpu, field, link_counters[id - 201]);
    }
    if (id >= 235 && id <= 250) {
        REQUIRE_SUPPORT(gpu->supports.nvlink_counters);
        return put_link(gpu, field, offsetof(struct link, counters.fec) + (id - 235) * sizeof(value));
    }
    if (id == FIELD_RAW_BER) {
        REQUIRE_SUPPORT(gpu->supports.nvlink_counters);
        return put_link(gpu, field, offsetof(struct link, counters.raw_ber));
    }
    REQUIRE_SUPPORT(gpu->nvlink.links > 0);
    switch (id) {
    case 84: case 85: case 86: case 87: case 88: case 89: /* speed of links 0 to 5, 6 to 11 */
        REQUIRE_SUPPORT(id - 84 < gpu->nvlink.links);
        return put_uint(field, gpu->link[id - 84].speed_mbps);
    case 132: case 133: case 134: case 135: case 136: case 137:
        REQUIRE_SUPPORT(id - 132 + 6 < gpu->nvlink.links);
        return put_uint(field, gpu->link[id - 132 + 6].speed_mbps);
    FIELD(90, true, put_uint, gpu->link[0].speed_mbps);
    FIELD(91, true, put_uint, gpu->nvlink.links);
    case 138: case 140: /* throughput of data, and with overhead, in KiB */
        return put_link(gpu, field, offsetof(struct link, counters.xmit_bytes));
    case 139: case 141:
        return put_link(gpu, field, offsetof(struct link, counters.rcv_bytes));
    case 161:
        REQUIRE_SUPPORT(gpu->supports.nvlink_errors);
        return put_link(gpu, field, offsetof(struct link, errors.replay));
    case 162:
        REQUIRE_SUPPORT(gpu->supports.nvlink_errors);
        return put_link(gpu, field, offsetof(struct link, errors.recovery));
    case 163:
        REQUIRE_SUPPORT(gpu->supports.nvlink_errors);
        return put_link(gpu, field, offsetof(struct link, errors.crc_flit));
    default:
        break;
    }
    REQUIRE_ARGUMENT(field->scopeId < gpu->nvlink.links);
    struct link *link = &gpu->link[field->scopeId];
    switch (id) {
    FIELD(146, true, put_uint, link->remote_link);
    FIELD(164, true, put_uint, link->state ? (int64_t)link->speed_mbps : 0);
    FIELD(165, true, put_uint, link->state);
    FIELD(166, true, put_uint, link->version);
    default:
        return NVML_ERROR_NOT_SUPPORTED;
    }
}

static nvmlReturn_t read_ecc_field(struct gpu *gpu, nvmlFieldValue_t *field)
{
    REQUIRE_SUPPORT(gpu->supports.ecc);
    switch (field->fieldId) {
    FIELD(1, true, put_uint, gpu->ecc.mode);
    FIELD(2, true, put_uint, gpu->ecc.pending);
    FIELD(3, gpu->ecc.mode, put_ull, ecc_total(gpu, NVML_VOLATILE_ECC, NVML_MEMORY_ERROR_TYPE_CORRECTED));
    FIELD(4, gpu->ecc.mode, put_ull, ecc_total(gpu, NVML_VOLATILE_ECC, NVML_MEMORY_ERROR_TYPE_UNCORRECTED));
    FIELD(5, gpu->ecc.mode, put_ull, ecc_total(gpu, NVML_AGGREGATE_ECC, NVML_MEMORY_ERROR_TYPE_CORRECTED));
    FIELD(6, gpu->ecc.mode, put_ull, ecc_total(gpu, NVML_AGGREGATE_ECC, NVML_MEMORY_ERROR_TYPE_UNCORRECTED));
    FIELD(11, gpu->ecc.mode, put_ull, gpu->ecc.count[NVML_VOLATILE_ECC][0][NVML_MEMORY_LOCATION_DRAM]);
    FIELD(12, gpu->ecc.mode, put_ull, gpu->ecc.count[NVML_VOLATILE_ECC][1][NVML_MEMORY_LOCATION_DRAM]);
    FIELD(22, gpu->ecc.mode, put_ull, gpu->ecc.count[NVML_AGGREGATE_ECC][0][NVML_MEMORY_LOCATION_DRAM]);
    FIELD(23, gpu->ecc.mode, put_ull, gpu->ecc.count[NVML_AGGREGATE_ECC][1][NVML_MEMORY_LOCATION_DRAM]);
    default:
        return NVML_ERROR_NOT_SUPPORTED;
    }
}

static nvmlReturn_t read_memory_field(struct gpu *gpu, nvmlFieldValue_t *field)
{
    bool retires = gpu->supports.retired_pages && gpu->ecc.mode;
    bool remaps = gpu->supports.row_remap && !gpu->mig.mode;
    switch (field->fieldId) {
    FIELD(29, retires, put_ull, gpu->retired.sbe);
    FIELD(30, retires, put_ull, gpu->retired.dbe);
    FIELD(31, retires, put_ull, gpu->retired.pending != 0);
    FIELD(92, retires, put_uint, 0);
    FIELD(93, retires, put_uint, gpu->retired.pending != 0);
    FIELD(142, remaps, put_uint, gpu->remap.corrected + gpu->remap.corrected_inactive);
    FIELD(143, remaps, put_uint, gpu->remap.uncorrected + gpu->remap.uncorrected_inactive);
    FIELD(144, remaps, put_uint, gpu->remap.pending != 0);
    FIELD(145, remaps, put_uint, gpu->remap.failure != 0);
    FIELD(301, remaps && gpu->supports.bank_remap, put_uint, gpu->remap.corrected_inactive);
    FIELD(302, remaps && gpu->supports.bank_remap, put_uint, gpu->remap.uncorrected_inactive);
    FIELD(303, gpu->supports.bank_remap, put_uint, gpu->bank_remap.active);
    FIELD(304, gpu->supports.bank_remap, put_uint, gpu->bank_remap.inactive);
    FIELD(305, gpu->supports.bank_remap, put_uint, gpu->bank_remap.histogram_max);
    FIELD(306, gpu->supports.bank_remap, put_uint, gpu->bank_remap.histogram_none);
    FIELD(307, gpu->supports.bank_remap, put_uint, gpu->bank_remap.pending != 0);
    default:
        return NVML_ERROR_NOT_SUPPORTED;
    }
}

static nvmlReturn_t read_pcie_field(struct gpu *gpu, nvmlFieldValue_t *field)
{
    bool counts = gpu->supports.pcie_counters;
    switch (field->fieldId) {
    FIELD(94, true, put_uint, gpu->pcie.replays);
    FIELD(95, true, put_uint, gpu->pcie.replay_rollovers);
    FIELD(169, counts, put_uint, gpu->pcie.l0_to_recovery);
    FIELD(173, counts, put_uint, gpu->pcie.correctable);
    FIELD(174, counts, put_uint, gpu->pcie.naks_received);
    FIELD(175, counts, put_uint, gpu->pcie.receiver_errors);
    FIELD(176, counts, put_uint, gpu->pcie.bad_tlp);
    FIELD(177, counts, put_uint, gpu->pcie.naks_sent);
    FIELD(178, counts, put_uint, gpu->pcie.bad_dllp);
    FIELD(179, counts, put_uint, gpu->pcie.non_fatal);
    FIELD(180, counts, put_uint, gpu->pcie.fatal);
    FIELD(181, counts, put_uint, gpu->pcie.unsupported_requests);
    FIELD(182, counts, put_uint, gpu->pcie.lcrc_errors);
    FIELD(183, counts, put_uint, gpu->pcie.lane_errors);
    default:
        return NVML_ERROR_NOT_SUPPORTED;
    }
}

/* Power, energy, temperature, throttling, recovery and C2C. */
static nvmlReturn_t read_device_field(struct gpu *gpu, nvmlFieldValue_t *field)
{
    bool margins = gpu->supports.margin_temperature;
    bool module = field->scopeId == 1; /* power scope: the GPU, or its module, which only Grace boards have */
    switch (field->fieldId) {
    FIELD(74, true, put_ull, gpu_throttle_ns(gpu, THROTTLE_POWER_CAP));
    FIELD(75, true, put_ull,
          gpu_throttle_ns(gpu, THROTTLE_SW_THERMAL) + gpu_throttle_ns(gpu, THROTTLE_HW_THERMAL));
    FIELD(76, true, put_ull, gpu_throttle_ns(gpu, THROTTLE_SYNC_BOOST));
    case 77: case 78: case 79: case 80: case 81:
        return put_ull(field, 0);
    FIELD(269, gpu->supports.throttle_time, put_ull, gpu_throttle_ns(gpu, THROTTLE_SW_THERMAL));
    FIELD(270, gpu->supports.throttle_time, put_ull, gpu_throttle_ns(gpu, THROTTLE_HW_THERMAL));
    FIELD(271, gpu->supports.throttle_time, put_ull, gpu_throttle_ns(gpu, THROTTLE_POWER_BRAKE));
    FIELD(82, gpu->supports.memory_temperature, put_uint, gpu->memory_temperature);
    FIELD(83, true, put_ull, gpu_energy(gpu));
    FIELD(191, true, put_ull, gpu_energy(gpu));
    FIELD(185, gpu->supports.power_average && !module, put_uint, gpu->power.usage);
    FIELD(186, gpu->supports.power_average && !module, put_uint, gpu->power.usage);
    FIELD(187, !module, put_uint, gpu->power.min_limit);
    FIELD(188, !module, put_uint, gpu->power.max_limit);
    FIELD(189, !module, put_uint, gpu->power.default_limit);
    FIELD(190, !module, put_uint, gpu->power.enforced_limit);
    FIELD(192, !module, put_uint, gpu->power.limit);
    FIELD(193, margins, put_int, gpu->tlimit.shutdown);
    FIELD(194, margins, put_int, gpu->tlimit.slowdown);
    FIELD(195, margins && gpu->supports.memory_temperature, put_int, gpu->tlimit.memory_max);
    FIELD(196, margins, put_int, gpu->tlimit.gpu_max);
    FIELD(226, gpu->supports.recovery_action, put_uint, gpu->recovery_action == 1);
    FIELD(227, gpu->supports.recovery_action, put_uint, gpu->recovery_action == 4);
    FIELD(230, gpu->supports.recovery_action, put_uint, gpu->recovery_action);
    FIELD(170, true, put_uint, gpu->c2c.links);
    FIELD(171, gpu->c2c.links, put_uint, gpu->c2c.status);
    FIELD(172, gpu->c2c.links, put_uint, gpu->c2c.max_bandwidth);
    FIELD(231, gpu->c2c.links, put_uint, gpu->c2c.errors);
    FIELD(232, gpu->c2c.links, put_uint, gpu->c2c.replays);
    FIELD(233, gpu->c2c.links, put_uint, gpu->c2c.replays_back_to_back);
    FIELD(234, gpu->c2c.links, put_uint, 0);
    default:
        return NVML_ERROR_NOT_SUPPORTED;
    }
}

static nvmlReturn_t read_field(struct gpu *gpu, nvmlFieldValue_t *field)
{
    unsigned id = field->fieldId;
    REQUIRE_ARGUMENT(id > 0 && id < FIELD_MAX);
    /* Whether a reset is wanted can be asked of a GPU that wants one. */
    if (gpu->reset_required && id != 226 && id != 227 && id != 230)
        return NVML_ERROR_RESET_REQUIRED;
    const struct link_series *series = find_link_series(id);
    if (series)
        return read_link_series(gpu, field, series);
    if (id <= 28)
        return read_ecc_field(gpu, field);
    if ((id >= 84 && id <= 91) || (id >= 132 && id <= 141) || id == 146 || (id >= 161 && id <= 166) ||
        (id >= 201 && id <= 222) || (id >= 235 && id <= 250) || id == FIELD_RAW_BER)
        return read_link_field(gpu, field);
    if (id <= 31 || id == 92 || id == 93 || (id >= 142 && id <= 145) || id >= 301)
        return read_memory_field(gpu, field);
    if (id == 94 || id == 95 || id == 169 || (id >= 173 && id <= 183))
        return read_pcie_field(gpu, field);
    return read_device_field(gpu, field);
}

NVML_CALL(nvmlDeviceGetFieldValues)(nvmlDevice_t device, int count, nvmlFieldValue_t *fields)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(fields && count > 0);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < count; i++) {
        nvmlFieldValue_t *field = &fields[i];
        field->timestamp = now.tv_sec * 1000000ll + now.tv_nsec / 1000;
        field->latencyUsec = 0;
        field->nvmlReturn = read_field(gpu, field);
    }
    return NVML_SUCCESS;
}
