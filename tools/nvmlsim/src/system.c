/* Calls about the node, and from names of a GPU to its handle. */
#include <ctype.h>
#include <stdlib.h>

#include "library.h"

#define SYSTEM_CALL()                                          \
    struct state *state;                                       \
    nvmlReturn_t entered = enter_system(CALL_NAME, &state);     \
    if (entered != NVML_SUCCESS)                               \
        return entered

NVML_CALL(nvmlSystemGetDriverVersion)(char *version, unsigned int length)
{
    SYSTEM_CALL();
    return copy_string(version, length, state->node.driver_version);
}

NVML_CALL(nvmlSystemGetNVMLVersion)(char *version, unsigned int length)
{
    SYSTEM_CALL();
    return copy_string(version, length, state->node.nvml_version);
}

NVML_CALL(nvmlSystemGetDriverBranch)(nvmlSystemDriverBranchInfo_v1_t *info, unsigned int length)
{
    SYSTEM_CALL();
    REQUIRE_ARGUMENT(info);
    REQUIRE_VERSION(info, nvmlSystemDriverBranchInfo_v1_t, 1);
    char branch[16];
    snprintf(branch, sizeof branch, "r%d_00", atoi(state->node.driver_version));
    return copy_string(info->branch, length < sizeof info->branch ? length : sizeof info->branch, branch);
}

NVML_CALL(nvmlSystemGetCudaDriverVersion_v2)(int *version)
{
    SYSTEM_CALL();
    REQUIRE_ARGUMENT(version);
    *version = (int)state->node.cuda_version;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlSystemGetCudaDriverVersion)(int *version)
{
    return answer_nvmlSystemGetCudaDriverVersion_v2(version);
}

NVML_CALL(nvmlSystemGetProcessName)(unsigned int pid, char *name, unsigned int length)
{
    SYSTEM_CALL();
    REQUIRE_ARGUMENT(name && length > 0);
    char path[64];
    snprintf(path, sizeof path, "/proc/%u/cmdline", pid);
    FILE *file = fopen(path, "r");
    if (!file)
        return NVML_ERROR_NOT_FOUND;
    char text[1024];
    size_t size = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[size] = '\0'; /* the first argument ends at its own NUL */
    snprintf(name, length, "%s", text);
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetCount_v2)(unsigned int *count)
{
    SYSTEM_CALL();
    REQUIRE_ARGUMENT(count);
    *count = gpu_count(state);
    return NVML_SUCCESS;
}

/* A GPU that fell off the bus is still counted, but nobody gets a handle to it. */
static nvmlReturn_t handle_of(struct state *state, const char *call, int slot, nvmlDevice_t *device)
{
    nvmlReturn_t ruled = enter_gpu(call, slot, state);
    if (ruled != NVML_SUCCESS)
        return ruled;
    if (state->gpu[slot].lost)
        return NVML_ERROR_GPU_IS_LOST;
    *device = device_handle(slot);
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetHandleByIndex_v2)(unsigned int index, nvmlDevice_t *device)
{
    SYSTEM_CALL();
    int slot = slot_of_index(state, index);
    REQUIRE_ARGUMENT(device && slot >= 0);
    return handle_of(state, CALL_NAME, slot, device);
}

static nvmlReturn_t handle_by_uuid(struct state *state, const char *call, const char *uuid, nvmlDevice_t *device)
{
    for (int slot = 0; slot < state->node.gpus; slot++) {
        struct gpu *gpu = &state->gpu[slot];
        if (!gpu->present)
            continue;
        if (strcmp(gpu->uuid, uuid) == 0)
            return handle_of(state, call, slot, device);
        for (int i = 0; gpu->mig.mode && i < MAX_MIG_DEVICES; i++) {
            struct target target = {.state = state, .gpu = gpu, .slot = slot, .mig = &gpu->mig_device[i]};
            char text[48];
            mig_uuid(&target, text);
            if (target.mig->present && strcmp(text, uuid) == 0) {
                nvmlReturn_t found = handle_of(state, call, slot, device);
                if (found == NVML_SUCCESS)
                    *device = mig_handle(slot, i);
                return found;
            }
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

NVML_CALL(nvmlDeviceGetHandleByUUID)(const char *uuid, nvmlDevice_t *device)
{
    SYSTEM_CALL();
    REQUIRE_ARGUMENT(uuid && device);
    return handle_by_uuid(state, CALL_NAME, uuid, device);
}

NVML_CALL(nvmlDeviceGetHandleByUUIDV)(const nvmlUUID_v1_t *uuid, nvmlDevice_t *device)
{
    SYSTEM_CALL();
    REQUIRE_ARGUMENT(uuid && device);
    REQUIRE_VERSION(uuid, nvmlUUID_v1_t, 1);
    if (uuid->type == NVML_UUID_TYPE_ASCII)
        return handle_by_uuid(state, CALL_NAME, uuid->value.str, device);
    REQUIRE_ARGUMENT(uuid->type == NVML_UUID_TYPE_BINARY);
    for (int slot = 0; slot < state->node.gpus; slot++) {
        unsigned char bytes[16];
        parse_uuid(state->gpu[slot].uuid, bytes);
        if (state->gpu[slot].present && memcmp(bytes, uuid->value.bytes, sizeof bytes) == 0)
            return handle_of(state, CALL_NAME, slot, device);
    }
    return NVML_ERROR_NOT_FOUND;
}

NVML_CALL(nvmlDeviceGetHandleBySerial)(const char *serial, nvmlDevice_t *device)
{
    SYSTEM_CALL();
    REQUIRE_ARGUMENT(serial && device);
    for (int slot = 0; slot < state->node.gpus; slot++)
        if (state->gpu[slot].present && strcmp(state->gpu[slot].serial, serial) == 0)
            return handle_of(state, CALL_NAME, slot, device);
    return NVML_ERROR_NOT_FOUND;
}

NVML_CALL(nvmlDeviceGetHandleByPciBusId_v2)(const char *pci, nvmlDevice_t *device)
{
    SYSTEM_CALL();
    REQUIRE_ARGUMENT(pci && device);
    unsigned domain, bus, function_device, function = 0;
    REQUIRE_ARGUMENT(sscanf(pci, "%8x:%2x:%2x.%1x", &domain, &bus, &function_device, &function) >= 3);
    for (int slot = 0; slot < state->node.gpus; slot++) {
        struct gpu *gpu = &state->gpu[slot];
        if (gpu->present && gpu->pci.domain == domain && gpu->pci.bus == bus && gpu->pci.device == function_device &&
            function == 0)
            return handle_of(state, CALL_NAME, slot, device);
    }
    return NVML_ERROR_NOT_FOUND;
}

void parse_uuid(const char *text, unsigned char bytes[16])
{
    memset(bytes, 0, 16);
    const char *digits = strncmp(text, "GPU-", 4) == 0 ? text + 4 : text;
    for (int nibble = 0; *digits && nibble < 32; digits++) {
        if (!isxdigit((unsigned char)*digits))
            continue;
        int digit = *digits <= '9' ? *digits - '0' : (*digits | 0x20) - 'a' + 10;
        bytes[nibble / 2] = (unsigned char)(bytes[nibble / 2] << 4 | digit);
        nibble++;
    }
}
