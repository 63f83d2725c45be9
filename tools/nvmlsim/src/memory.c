/* Device memory: how much there is, and its errors, remapped rows, retired pages and repairs. */
#include "library.h"

/* What is used, reserved by the driver, and free: of a GPU, or of a MIG device, which has no part in the reserve. */
static void memory_of(const struct target *target, int64_t *total, int64_t *reserved, int64_t *used)
{
    struct gpu *gpu = target->gpu;
    *total = target->mig ? target->mig->memory : gpu->memory.total;
    *reserved = target->mig ? 0 : gpu->memory.reserved;
    *used = target->mig ? target->mig->used_memory : gpu->memory.used;
}

NVML_CALL(nvmlDeviceGetMemoryInfo)(nvmlDevice_t device, nvmlMemory_t *memory)
{
    struct target target;
    nvmlReturn_t entered = enter_any_device(CALL_NAME, DYNAMIC, device, &target);
    if (entered != NVML_SUCCESS)
        return entered;
    REQUIRE_ARGUMENT(memory);
    int64_t total, reserved, used;
    memory_of(&target, &total, &reserved, &used);
    memory->total = (unsigned long long)total;
    memory->used = (unsigned long long)(used + reserved); /* version 1 knows no reserve */
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetMemoryInfo_v2)(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    struct target target;
    nvmlReturn_t entered = enter_any_device(CALL_NAME, DYNAMIC, device, &target);
    if (entered != NVML_SUCCESS)
        return entered;
    REQUIRE_ARGUMENT(memory);
    REQUIRE_VERSION(memory, nvmlMemory_v2_t, 2);
    int64_t total, reserved, used;
    memory_of(&target, &total, &reserved, &used);
    memory->total = (unsigned long long)total;
    memory->reserved = (unsigned long long)reserved;
    memory->used = (unsigned long long)used;
    memory->free = (unsigned long long)(total - reserved - used);
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetBAR1MemoryInfo)(nvmlDevice_t device, nvmlBAR1Memory_t *memory)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(memory);
    memory->bar1Total = (unsigned long long)gpu->bar1.total;
    memory->bar1Used = (unsigned long long)gpu->bar1.used;
    memory->bar1Free = memory->bar1Total - memory->bar1Used;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetEccMode)(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(current && pending);
    REQUIRE_SUPPORT(gpu->supports.ecc);
    *current = (unsigned int)gpu->ecc.mode;
    *pending = (unsigned int)gpu->ecc.pending;
    return NVML_SUCCESS;
}

UINT_GETTER(nvmlDeviceGetDefaultEccMode, STATIC, gpu->supports.ecc, 1)

/* Nothing is counted while ECC is off. */
static bool counts_ecc(struct gpu *gpu)
{
    return gpu->supports.ecc && gpu->ecc.mode;
}

NVML_CALL(nvmlDeviceGetTotalEccErrors)(nvmlDevice_t device, unsigned int type, unsigned int counter,
                                       unsigned long long *count)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(count && type < NVML_MEMORY_ERROR_TYPE_COUNT && counter < NVML_ECC_COUNTER_TYPE_COUNT);
    REQUIRE_SUPPORT(counts_ecc(gpu));
    *count = (unsigned long long)ecc_total(gpu, (int)counter, (int)type);
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetDetailedEccErrors)(nvmlDevice_t device, unsigned int type, unsigned int counter,
                                          nvmlEccErrorCounts_t *counts)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(counts && type < NVML_MEMORY_ERROR_TYPE_COUNT && counter < NVML_ECC_COUNTER_TYPE_COUNT);
    REQUIRE_SUPPORT(counts_ecc(gpu));
    value *location = gpu->ecc.count[counter][type];
    counts->l1Cache = (unsigned long long)location[NVML_MEMORY_LOCATION_L1_CACHE];
    counts->l2Cache = (unsigned long long)location[NVML_MEMORY_LOCATION_L2_CACHE];
    counts->deviceMemory = (unsigned long long)location[NVML_MEMORY_LOCATION_DRAM];
    counts->registerFile = (unsigned long long)location[NVML_MEMORY_LOCATION_REGISTER_FILE];
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetMemoryErrorCounter)(nvmlDevice_t device, unsigned int type, unsigned int counter,
                                           unsigned int location, unsigned long long *count)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(count && type < NVML_MEMORY_ERROR_TYPE_COUNT && counter < NVML_ECC_COUNTER_TYPE_COUNT &&
                     location < NVML_MEMORY_LOCATION_COUNT);
    REQUIRE_SUPPORT(counts_ecc(gpu));
    /* From Ampere on all of the on-chip memories are one location. */
    bool ampere = gpu->architecture >= 7;
    REQUIRE_SUPPORT(location == NVML_MEMORY_LOCATION_DRAM || (location == NVML_MEMORY_LOCATION_SRAM) == ampere);
    *count = (unsigned long long)gpu->ecc.count[counter][type][location];
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceClearEccErrorCounts)(nvmlDevice_t device, unsigned int counter)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(counter < NVML_ECC_COUNTER_TYPE_COUNT);
    REQUIRE_SUPPORT(counts_ecc(gpu));
    for (int type = 0; type < NVML_MEMORY_ERROR_TYPE_COUNT; type++)
        for (int location = 0; location < NVML_MEMORY_LOCATION_COUNT; location++)
            gpu->ecc.count[counter][type][location] = 0;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetSramEccErrorStatus)(nvmlDevice_t device, nvmlEccSramErrorStatus_v1_t *status)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(status);
    REQUIRE_VERSION(status, nvmlEccSramErrorStatus_v1_t, 1);
    REQUIRE_SUPPORT(gpu->supports.sram_ecc_status && gpu->ecc.mode);
    value(*count)[NVML_MEMORY_ERROR_TYPE_COUNT][NVML_MEMORY_LOCATION_COUNT] = gpu->ecc.count;
    *status = (nvmlEccSramErrorStatus_v1_t){
        .version = status->version,
        .aggregateUncParity = (unsigned long long)gpu->sram.aggregate_parity,
        .aggregateUncSecDed = (unsigned long long)gpu->sram.aggregate_secded,
        .aggregateCor = (unsigned long long)
            count[NVML_AGGREGATE_ECC][NVML_MEMORY_ERROR_TYPE_CORRECTED][NVML_MEMORY_LOCATION_SRAM],
        .volatileUncParity = (unsigned long long)gpu->sram.volatile_parity,
        .volatileUncSecDed = (unsigned long long)gpu->sram.volatile_secded,
        .volatileCor = (unsigned long long)
            count[NVML_VOLATILE_ECC][NVML_MEMORY_ERROR_TYPE_CORRECTED][NVML_MEMORY_LOCATION_SRAM],
        .aggregateUncBucketL2 = (unsigned long long)gpu->sram.bucket_l2,
        .aggregateUncBucketSm = (unsigned long long)gpu->sram.bucket_sm,
        .aggregateUncBucketPcie = (unsigned long long)gpu->sram.bucket_pcie,
        .aggregateUncBucketMcu = (unsigned long long)gpu->sram.bucket_mcu,
        .aggregateUncBucketOther = (unsigned long long)gpu->sram.bucket_other,
        .bThresholdExceeded = (unsigned int)gpu->sram.threshold_exceeded,
    };
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetRemappedRows)(nvmlDevice_t device, unsigned int *corrected,
                                     unsigned int *uncorrected, unsigned int *pending, unsigned int *failure)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(corrected && uncorrected && pending && failure);
    REQUIRE_SUPPORT(gpu->supports.row_remap && !gpu->mig.mode);
    *corrected = (unsigned int)(gpu->remap.corrected + gpu->remap.corrected_inactive);
    *uncorrected = (unsigned int)(gpu->remap.uncorrected + gpu->remap.uncorrected_inactive);
    *pending = gpu->remap.pending != 0;
    *failure = gpu->remap.failure != 0;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetRemappedRows_v2)(nvmlDevice_t device, nvmlRemappedRowsInfo_v2_t *info)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(info);
    REQUIRE_SUPPORT(gpu->supports.row_remap && !gpu->mig.mode);
    *info = (nvmlRemappedRowsInfo_v2_t){
        .corrActiveRemaps = (unsigned int)gpu->remap.corrected,
        .corrInactiveRemaps = (unsigned int)gpu->remap.corrected_inactive,
        .uncActiveRemaps = (unsigned int)gpu->remap.uncorrected,
        .uncInactiveRemaps = (unsigned int)gpu->remap.uncorrected_inactive,
        .bPending = gpu->remap.pending != 0,
        .bfailureOccurred = gpu->remap.failure != 0,
    };
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetRowRemapperHistogram)(nvmlDevice_t device, nvmlRowRemapperHistogramValues_t *values)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(values);
    REQUIRE_SUPPORT(gpu->supports.row_remap);
    *values = (nvmlRowRemapperHistogramValues_t){
        .max = (unsigned int)gpu->remap.histogram.max,
        .high = (unsigned int)gpu->remap.histogram.high,
        .partial = (unsigned int)gpu->remap.histogram.partial,
        .low = (unsigned int)gpu->remap.histogram.low,
        .none = (unsigned int)gpu->remap.histogram.none,
    };
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetBankRemapperStatus_v1)(nvmlDevice_t device, nvmlEccBankRemapperStatus_v1_t *status)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(status);
    REQUIRE_SUPPORT(gpu->supports.bank_remap);
    status->activeRemappings = (unsigned int)gpu->bank_remap.active;
    status->inactiveRemappings = (unsigned int)gpu->bank_remap.inactive;
    status->bPending = gpu->bank_remap.pending != 0;
    status->histogram.maxSpareGroupCount = (unsigned int)gpu->bank_remap.histogram_max;
    status->histogram.noSpareGroupCount = (unsigned int)gpu->bank_remap.histogram_none;
    return NVML_SUCCESS;
}

/* `times` may only be touched together with `addresses`: pynvml asks for the number of pages with neither. */
static nvmlReturn_t retired_pages(struct gpu *gpu, unsigned int cause, unsigned int *count,
                                  unsigned long long *addresses, unsigned long long *times)
{
    REQUIRE_ARGUMENT(count && cause < NVML_PAGE_RETIREMENT_CAUSE_COUNT);
    REQUIRE_SUPPORT(gpu->supports.retired_pages && gpu->ecc.mode);
    int64_t number = cause == NVML_PAGE_RETIREMENT_CAUSE_DBE ? gpu->retired.dbe : gpu->retired.sbe;
    if (number > MAX_RETIRED_PAGES)
        number = MAX_RETIRED_PAGES;
    unsigned int room = *count;
    *count = (unsigned int)number;
    if (number == 0)
        return NVML_SUCCESS;
    if (!addresses || room < number)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (int64_t i = 0; i < number; i++) {
        addresses[i] = (unsigned long long)(0x10000000 + (cause << 24) + (i << 16));
        if (times)
            times[i] = (unsigned long long)(1700000000000000 + i * 60000000); /* microseconds since 1970 */
    }
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetRetiredPages)(nvmlDevice_t device, unsigned int cause, unsigned int *count,
                                     unsigned long long *addresses)
{
    DEVICE_CALL(device, DYNAMIC);
    return retired_pages(gpu, cause, count, addresses, NULL);
}

NVML_CALL(nvmlDeviceGetRetiredPages_v2)(nvmlDevice_t device, unsigned int cause, unsigned int *count,
                                        unsigned long long *addresses, unsigned long long *times)
{
    DEVICE_CALL(device, DYNAMIC);
    return retired_pages(gpu, cause, count, addresses, times);
}

UINT_GETTER(nvmlDeviceGetRetiredPagesPendingStatus, DYNAMIC, gpu->supports.retired_pages && gpu->ecc.mode,
            gpu->retired.pending != 0)

NVML_CALL(nvmlDeviceGetRepairStatus)(nvmlDevice_t device, nvmlRepairStatus_v1_t *status)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(status);
    REQUIRE_VERSION(status, nvmlRepairStatus_v1_t, 1);
    REQUIRE_SUPPORT(gpu->supports.repair_status);
    status->bChannelRepairPending = gpu->repair.channel_pending != 0;
    status->bTpcRepairPending = gpu->repair.tpc_pending != 0;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetUnrepairableMemoryFlag_v1)(nvmlDevice_t device,
                                                  nvmlUnrepairableMemoryStatus_v1_t *status)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(status);
    REQUIRE_VERSION(status, nvmlUnrepairableMemoryStatus_v1_t, 1);
    REQUIRE_SUPPORT(gpu->supports.unrepairable_memory);
    status->unrepairableMemory = gpu->unrepairable_memory != 0;
    return NVML_SUCCESS;
}
