/* Who a GPU is: names, numbers, InfoROM, modes. */
#include <stdlib.h>

#include "library.h"

/* A MIG device has the UUID of its GPU with its instance in the last digits. */
void mig_uuid(const struct target *target, char uuid[48])
{
    snprintf(uuid, 48, "MIG-%.32s%04x", target->gpu->uuid + 4, (unsigned)target->mig->gpu_instance & 0xffff);
}

NVML_CALL(nvmlDeviceGetName)(nvmlDevice_t device, char *name, unsigned int length)
{
    struct target target;
    nvmlReturn_t entered = enter_any_device(CALL_NAME, STATIC, device, &target);
    if (entered != NVML_SUCCESS)
        return entered;
    if (!target.mig)
        return copy_string(name, length, target.gpu->name);
    char text[128];
    snprintf(text, sizeof text, "%.90s MIG %dg.%dgb", target.gpu->name, (int)target.mig->slices,
             (int)((target.mig->memory + (1 << 29)) >> 30)); /* to the nearest */
    return copy_string(name, length, text);
}

NVML_CALL(nvmlDeviceGetUUID)(nvmlDevice_t device, char *uuid, unsigned int length)
{
    struct target target;
    nvmlReturn_t entered = enter_any_device(CALL_NAME, STATIC, device, &target);
    if (entered != NVML_SUCCESS)
        return entered;
    char text[48];
    if (target.mig)
        mig_uuid(&target, text);
    return copy_string(uuid, length, target.mig ? text : target.gpu->uuid);
}

#define STRING_GETTER(call, text)                                                              \
    NVML_CALL(call)(nvmlDevice_t device, char *buffer, unsigned int length)         \
    {                                                                                          \
        DEVICE_CALL(device, STATIC);                                                           \
        return copy_string(buffer, length, text);                                              \
    }

STRING_GETTER(nvmlDeviceGetSerial, gpu->serial)
STRING_GETTER(nvmlDeviceGetBoardPartNumber, gpu->part_number)
STRING_GETTER(nvmlDeviceGetVbiosVersion, gpu->vbios)
STRING_GETTER(nvmlDeviceGetInforomImageVersion, gpu->inforom_image)

NVML_CALL(nvmlDeviceGetInforomVersion)(nvmlDevice_t device, unsigned int object, char *version,
                                       unsigned int length)
{
    DEVICE_CALL(device, STATIC);
    static const char *const versions[] = {"2.1", "7.16", "N/A", "1.0"};
    REQUIRE_ARGUMENT(object < sizeof versions / sizeof *versions);
    REQUIRE_SUPPORT(object < 2); /* OEM and ECC objects */
    return copy_string(version, length, versions[object]);
}

NVML_CALL(nvmlDeviceValidateInforom)(nvmlDevice_t device)
{
    DEVICE_CALL(device, STATIC);
    return gpu->inforom_corrupted ? NVML_ERROR_CORRUPTED_INFOROM : NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetInforomConfigurationChecksum)(nvmlDevice_t device, unsigned int *checksum)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(checksum);
    if (gpu->inforom_corrupted)
        return NVML_ERROR_CORRUPTED_INFOROM;
    *checksum = (unsigned)strtoul(gpu->uuid + 4, NULL, 16);
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetIndex)(nvmlDevice_t device, unsigned int *index)
{
    struct target target;
    nvmlReturn_t entered = enter_any_device(CALL_NAME, CACHED, device, &target);
    if (entered != NVML_SUCCESS)
        return entered;
    REQUIRE_ARGUMENT(index);
    *index = target.mig ? (unsigned)(target.mig - target.gpu->mig_device) : index_of_slot(target.state, target.slot);
    return NVML_SUCCESS;
}

UINT_GETTER(nvmlDeviceGetMinorNumber, CACHED, true, target.slot)
UINT_GETTER(nvmlDeviceGetBrand, STATIC, true, gpu->brand)
UINT_GETTER(nvmlDeviceGetArchitecture, STATIC, true, gpu->architecture)
UINT_GETTER(nvmlDeviceGetNumGpuCores, STATIC, true, gpu->cores)
UINT_GETTER(nvmlDeviceGetMemoryBusWidth, STATIC, true, gpu->memory_bus_bits)
UINT_GETTER(nvmlDeviceGetModuleId, STATIC, gpu->nvlink.links, gpu->module_id)
UINT_GETTER(nvmlDeviceGetBoardId, STATIC, true, gpu->board_id)
UINT_GETTER(nvmlDeviceGetMultiGpuBoard, STATIC, true, 0)
UINT_GETTER(nvmlDeviceGetBusType, STATIC, true, 2 /* PCIe */)
UINT_GETTER(nvmlDeviceGetPersistenceMode, STATIC, true, gpu->persistence_mode)
UINT_GETTER(nvmlDeviceGetComputeMode, STATIC, true, gpu->compute_mode)
UINT_GETTER(nvmlDeviceGetVirtualizationMode, STATIC, true, gpu->virtualization_mode)
UINT_GETTER(nvmlDeviceGetDisplayMode, STATIC, true, 0)
UINT_GETTER(nvmlDeviceGetDisplayActive, STATIC, true, 0)

NVML_CALL(nvmlDeviceSetPersistenceMode)(nvmlDevice_t device, unsigned int mode)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(mode <= 1);
    gpu->persistence_mode = mode;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetNumaNodeId)(nvmlDevice_t device, int *node)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(node);
    /* Only for GPUs whose memory is a NUMA node of the host: those with C2C. */
    REQUIRE_SUPPORT(gpu->c2c.links > 0);
    *node = (int)gpu->numa_node;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetCudaComputeCapability)(nvmlDevice_t device, int *major, int *minor)
{
    struct target target;
    nvmlReturn_t entered = enter_any_device(CALL_NAME, STATIC, device, &target);
    if (entered != NVML_SUCCESS)
        return entered;
    REQUIRE_ARGUMENT(major && minor);
    *major = (int)target.gpu->cuda.major;
    *minor = (int)target.gpu->cuda.minor;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetGspFirmwareVersion)(nvmlDevice_t device, char *version)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(version);
    REQUIRE_SUPPORT(gpu->architecture >= 6); /* Turing was the first with a GSP */
    return copy_string(version, 64, target.state->node.driver_version);
}

NVML_CALL(nvmlDeviceGetPlatformInfo)(nvmlDevice_t device, nvmlPlatformInfo_t *info)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(info);
    if (info->version != NVML_STRUCT_VERSION(nvmlPlatformInfo_t, 1) &&
        info->version != NVML_STRUCT_VERSION(nvmlPlatformInfo_t, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    REQUIRE_SUPPORT(gpu->supports.platform);
    memset(info->ibGuid, 0, sizeof info->ibGuid);
    memcpy(info->chassisSerialNumber, target.state->node.chassis_serial, sizeof info->chassisSerialNumber);
    info->slotNumber = (unsigned char)gpu->platform.slot;
    info->trayIndex = (unsigned char)gpu->platform.tray;
    info->hostId = (unsigned char)gpu->platform.host;
    info->peerType = (unsigned char)gpu->platform.peer_type;
    info->moduleId = (unsigned char)gpu->module_id;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetAddressingMode)(nvmlDevice_t device, nvmlDeviceAddressingMode_v1_t *mode)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(mode);
    REQUIRE_VERSION(mode, nvmlDeviceAddressingMode_v1_t, 1);
    mode->value = (unsigned int)gpu->addressing_mode;
    return NVML_SUCCESS;
}
