/* Processes on a GPU, and the MIG devices it is divided into. */
#include "library.h"

enum { NOT_IN_MIG = 0xffffffff };

static bool runs_here(const struct target *target, struct process *process, int64_t graphics)
{
    return process->pid != 0 && process->graphics == graphics &&
           (!target->mig || process->gpu_instance == target->mig->gpu_instance);
}

/* An array that is too short is filled as far as it goes, and the number that is wanted comes back in *count. */
static nvmlReturn_t processes(const char *call, nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos,
                              int64_t graphics)
{
    struct target target;
    nvmlReturn_t entered = enter_any_device(call, DYNAMIC, device, &target);
    if (entered != NVML_SUCCESS)
        return entered;
    REQUIRE_ARGUMENT(count && (infos || *count == 0));
    unsigned room = *count, found = 0;
    for (int i = 0; i < MAX_PROCESSES; i++) {
        struct process *process = &target.gpu->process[i];
        if (!runs_here(&target, process, graphics))
            continue;
        if (found < room)
            infos[found] = (nvmlProcessInfo_t){
                .pid = (unsigned int)process->pid,
                .usedGpuMemory = (unsigned long long)process->used_memory,
                .gpuInstanceId = (unsigned int)process->gpu_instance,
                .computeInstanceId = (unsigned int)process->compute_instance,
            };
        found++;
    }
    *count = found;
    return found > room ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}

#define PROCESS_GETTER(call, graphics)                                                                         \
    NVML_CALL(call)(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos)             \
    {                                                                                                          \
        return processes(CALL_NAME, device, count, infos, graphics);                                            \
    }

/* Versions 2 and 3 have the same layout. */
PROCESS_GETTER(nvmlDeviceGetComputeRunningProcesses_v2, 0)
PROCESS_GETTER(nvmlDeviceGetComputeRunningProcesses_v3, 0)
PROCESS_GETTER(nvmlDeviceGetGraphicsRunningProcesses_v2, 1)
PROCESS_GETTER(nvmlDeviceGetGraphicsRunningProcesses_v3, 1)
PROCESS_GETTER(nvmlDeviceGetMPSComputeRunningProcesses_v2, 2)
PROCESS_GETTER(nvmlDeviceGetMPSComputeRunningProcesses_v3, 2)

NVML_CALL(nvmlDeviceGetMigMode)(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(current && pending);
    REQUIRE_SUPPORT(gpu->supports.mig);
    *current = (unsigned int)gpu->mig.mode;
    *pending = (unsigned int)gpu->mig.pending;
    return NVML_SUCCESS;
}

UINT_GETTER(nvmlDeviceGetMaxMigDeviceCount, STATIC, true, gpu->supports.mig ? (int64_t)gpu->mig.max_devices : 0)

NVML_CALL(nvmlDeviceGetMigDeviceHandleByIndex)(nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(mig);
    REQUIRE_SUPPORT(gpu->supports.mig);
    REQUIRE_ARGUMENT(index < gpu->mig.max_devices);
    if (!gpu->mig.mode || !gpu->mig_device[index].present)
        return NVML_ERROR_NOT_FOUND;
    *mig = mig_handle(target.slot, (int)index);
    return NVML_SUCCESS;
}

/* A call that only MIG devices answer. */
#define MIG_CALL(device)                                                                    \
    struct target target;                                                                   \
    nvmlReturn_t entered = enter_any_device(CALL_NAME, STATIC, device, &target);             \
    if (entered != NVML_SUCCESS)                                                            \
        return entered

NVML_CALL(nvmlDeviceIsMigDeviceHandle)(nvmlDevice_t device, unsigned int *is_mig)
{
    MIG_CALL(device);
    REQUIRE_ARGUMENT(is_mig);
    *is_mig = target.mig != NULL;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetDeviceHandleFromMigDeviceHandle)(nvmlDevice_t mig, nvmlDevice_t *device)
{
    MIG_CALL(mig);
    REQUIRE_ARGUMENT(device && target.mig);
    *device = device_handle(target.slot);
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetGpuInstanceId)(nvmlDevice_t mig, unsigned int *id)
{
    MIG_CALL(mig);
    REQUIRE_ARGUMENT(id && target.mig);
    *id = (unsigned int)target.mig->gpu_instance;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetComputeInstanceId)(nvmlDevice_t mig, unsigned int *id)
{
    MIG_CALL(mig);
    REQUIRE_ARGUMENT(id && target.mig);
    *id = (unsigned int)target.mig->compute_instance;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetAttributes_v2)(nvmlDevice_t mig, nvmlDeviceAttributes_t *attributes)
{
    MIG_CALL(mig);
    REQUIRE_ARGUMENT(attributes);
    REQUIRE_SUPPORT(target.mig);
    *attributes = (nvmlDeviceAttributes_t){
        .multiprocessorCount = (unsigned int)target.mig->multiprocessors,
        .sharedCopyEngineCount = 1,
        .gpuInstanceSliceCount = (unsigned int)target.mig->slices,
        .computeInstanceSliceCount = (unsigned int)target.mig->slices,
        .memorySizeMB = (unsigned long long)(target.mig->memory >> 20),
    };
    return NVML_SUCCESS;
}
