/* NVLinks, the fabric they make, and the link to a Grace CPU. */
#include "library.h"

/* The link of a call, or the error: a GPU without the link does not support it, no GPU has a 36th. */
static nvmlReturn_t find_link(struct gpu *gpu, unsigned int number, struct link **link)
{
    REQUIRE_ARGUMENT(number < NVML_NVLINK_MAX_LINKS);
    REQUIRE_SUPPORT(number < gpu->nvlink.links);
    *link = &gpu->link[number];
    return NVML_SUCCESS;
}

#define LINK_CALL(device, number)                                 \
    DEVICE_CALL(device, DYNAMIC);                                 \
    struct link *link;                                            \
    nvmlReturn_t found = find_link(gpu, number, &link);           \
    if (found != NVML_SUCCESS)                                    \
        return found

NVML_CALL(nvmlDeviceGetNvLinkState)(nvmlDevice_t device, unsigned int number, unsigned int *active)
{
    LINK_CALL(device, number);
    REQUIRE_ARGUMENT(active);
    *active = (unsigned int)link->state;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetNvLinkVersion)(nvmlDevice_t device, unsigned int number, unsigned int *version)
{
    LINK_CALL(device, number);
    REQUIRE_ARGUMENT(version);
    *version = (unsigned int)link->version;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetNvLinkCapability)(nvmlDevice_t device, unsigned int number, unsigned int capability,
                                         unsigned int *result)
{
    LINK_CALL(device, number);
    REQUIRE_ARGUMENT(result && capability < NVML_NVLINK_CAP_COUNT);
    *result = capability != 4; /* all but an SLI bridge */
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetNvLinkRemoteDeviceType)(nvmlDevice_t device, unsigned int number, unsigned int *type)
{
    LINK_CALL(device, number);
    REQUIRE_ARGUMENT(type);
    *type = link->state ? (unsigned int)link->remote_type : 0xff; /* unknown */
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetNvLinkRemotePciInfo_v2)(nvmlDevice_t device, unsigned int number, nvmlPciInfo_t *info)
{
    LINK_CALL(device, number);
    REQUIRE_ARGUMENT(info);
    REQUIRE_SUPPORT(link->state);
    struct state *state = target.state;
    memset(info, 0, sizeof *info);
    if (link->remote_type == 2) {
        struct nvswitch *nvswitch = &state->node.nvswitch[link->remote_device];
        info->domain = (unsigned int)nvswitch->domain;
        info->bus = (unsigned int)nvswitch->bus;
        info->device = (unsigned int)nvswitch->device;
        info->pciDeviceId = (unsigned int)state->node.switch_device_id << 16 | 0x10de;
    } else {
        struct gpu *peer = &state->gpu[link->remote_device];
        info->domain = (unsigned int)peer->pci.domain;
        info->bus = (unsigned int)peer->pci.bus;
        info->device = (unsigned int)peer->pci.device;
        info->pciDeviceId = (unsigned int)peer->pci.device_id;
    }
    snprintf(info->busIdLegacy, sizeof info->busIdLegacy, "%04X:%02X:%02X.0", info->domain & 0xffff, info->bus & 0xff,
             info->device & 0xff);
    snprintf(info->busId, sizeof info->busId, "%08X:%02X:%02X.0", info->domain, info->bus, info->device);
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetNvLinkErrorCounter)(nvmlDevice_t device, unsigned int number, unsigned int counter,
                                           unsigned long long *count)
{
    LINK_CALL(device, number);
    REQUIRE_ARGUMENT(count && counter < NVML_NVLINK_ERROR_COUNT);
    REQUIRE_SUPPORT(gpu->supports.nvlink_errors);
    value *const counters[NVML_NVLINK_ERROR_COUNT] = {&link->errors.replay, &link->errors.recovery,
                                                      &link->errors.crc_flit, &link->errors.crc_data,
                                                      &link->errors.ecc};
    *count = (unsigned long long)*counters[counter];
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceResetNvLinkErrorCounters)(nvmlDevice_t device, unsigned int number)
{
    LINK_CALL(device, number);
    REQUIRE_SUPPORT(gpu->supports.nvlink_errors);
    link->errors.replay = link->errors.recovery = link->errors.ecc = 0;
    link->errors.crc_flit = link->errors.crc_data = 0;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetGpuFabricInfo)(nvmlDevice_t device, nvmlGpuFabricInfo_t *info)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(info);
    REQUIRE_SUPPORT(gpu->supports.fabric);
    parse_uuid(target.state->node.cluster_uuid, info->clusterUuid);
    info->status = (nvmlReturn_t)gpu->fabric.status;
    info->cliqueId = (unsigned int)gpu->fabric.clique;
    info->state = (unsigned int)gpu->fabric.state;
    return NVML_SUCCESS;
}

/* The caller's structure is of the version that it says; the third only adds to the end of the second. */
NVML_CALL(nvmlDeviceGetGpuFabricInfoV)(nvmlDevice_t device, nvmlGpuFabricInfo_v3_t *info)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(info);
    bool third = info->version == NVML_STRUCT_VERSION(nvmlGpuFabricInfo_v3_t, 3);
    if (!third && info->version != NVML_STRUCT_VERSION(nvmlGpuFabricInfo_v2_t, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    REQUIRE_SUPPORT(gpu->supports.fabric);
    parse_uuid(target.state->node.cluster_uuid, info->clusterUuid);
    info->status = (nvmlReturn_t)gpu->fabric.status;
    info->cliqueId = (unsigned int)gpu->fabric.clique;
    info->state = (unsigned int)gpu->fabric.state;
    info->healthMask = (unsigned int)gpu->fabric.health_mask;
    if (third)
        info->healthSummary = (unsigned char)gpu->fabric.health_summary;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetGpuFabricInfo_v4)(nvmlDevice_t device, nvmlGpuFabricInfo_v4_t *info)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(info);
    REQUIRE_SUPPORT(gpu->supports.fabric);
    memset(info, 0, sizeof *info);
    parse_uuid(target.state->node.cluster_uuid, info->clusterUuid);
    info->status = (nvmlReturn_t)gpu->fabric.status;
    info->numCliques = 1;
    info->cliques[0].id = (unsigned int)gpu->fabric.clique;
    info->state = (unsigned char)gpu->fabric.state;
    info->healthMask = (unsigned int)gpu->fabric.health_mask;
    info->healthSummary = (unsigned char)gpu->fabric.health_summary;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetC2cModeInfoV)(nvmlDevice_t device, nvmlC2cModeInfo_v1_t *info)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(info);
    info->isC2cEnabled = gpu->c2c.links > 0;
    return NVML_SUCCESS;
}
