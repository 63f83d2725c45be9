/* Where a GPU is on the PCI bus, its link, and how GPUs are to each other. */
#include "library.h"

static void pci_info(struct gpu *gpu, nvmlPciInfo_t *info)
{
    memset(info, 0, sizeof *info);
    info->domain = (unsigned int)gpu->pci.domain;
    info->bus = (unsigned int)gpu->pci.bus;
    info->device = (unsigned int)gpu->pci.device;
    info->pciDeviceId = (unsigned int)gpu->pci.device_id;
    info->pciSubSystemId = (unsigned int)gpu->pci.subsystem_id;
    snprintf(info->busIdLegacy, sizeof info->busIdLegacy, "%04X:%02X:%02X.0", info->domain & 0xffff,
             info->bus & 0xff, info->device & 0xff);
    snprintf(info->busId, sizeof info->busId, "%08X:%02X:%02X.0", info->domain, info->bus, info->device);
}

NVML_CALL(nvmlDeviceGetPciInfo_v3)(nvmlDevice_t device, nvmlPciInfo_t *info)
{
    DEVICE_CALL(device, CACHED);
    REQUIRE_ARGUMENT(info);
    pci_info(gpu, info);
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetPciInfoExt)(nvmlDevice_t device, nvmlPciInfoExt_v1_t *info)
{
    DEVICE_CALL(device, CACHED);
    REQUIRE_ARGUMENT(info);
    REQUIRE_VERSION(info, nvmlPciInfoExt_v1_t, 1);
    nvmlPciInfo_t plain;
    pci_info(gpu, &plain);
    *info = (nvmlPciInfoExt_v1_t){
        .version = info->version,
        .domain = plain.domain,
        .bus = plain.bus,
        .device = plain.device,
        .pciDeviceId = plain.pciDeviceId,
        .pciSubSystemId = plain.pciSubSystemId,
        .baseClass = 3, /* display controller */
        .subClass = 2, /* 3D controller */
    };
    memcpy(info->busId, plain.busId, sizeof info->busId);
    return NVML_SUCCESS;
}

UINT_GETTER(nvmlDeviceGetCurrPcieLinkGeneration, DYNAMIC, true, pcie_generation_now(gpu))
UINT_GETTER(nvmlDeviceGetMaxPcieLinkGeneration, STATIC, true, gpu->pcie.max_generation)
UINT_GETTER(nvmlDeviceGetGpuMaxPcieLinkGeneration, STATIC, true, gpu->pcie.device_max_generation)
UINT_GETTER(nvmlDeviceGetCurrPcieLinkWidth, DYNAMIC, true, gpu->pcie.width)
UINT_GETTER(nvmlDeviceGetMaxPcieLinkWidth, STATIC, true, gpu->pcie.max_width)
UINT_GETTER(nvmlDeviceGetPcieReplayCounter, DYNAMIC, true, gpu->pcie.replays)
UINT_GETTER(nvmlDeviceGetPcieLinkMaxSpeed, STATIC, true, gpu->pcie.max_generation) /* numbered like generations */

static unsigned megabits_per_lane(unsigned generation)
{
    static const unsigned speeds[] = {0, 2500, 5000, 8000, 16000, 32000, 64000};
    return generation < sizeof speeds / sizeof *speeds ? speeds[generation] : 0;
}

UINT_GETTER(nvmlDeviceGetPcieSpeed, DYNAMIC, true, megabits_per_lane(pcie_generation_now(gpu)))

NVML_CALL(nvmlDeviceGetPcieThroughput)(nvmlDevice_t device, unsigned int counter, unsigned int *kbps)
{
    DEVICE_CALL(device, DYNAMIC);
    REQUIRE_ARGUMENT(kbps && counter < 2);
    REQUIRE_SUPPORT(!gpu->mig.mode);
    *kbps = (unsigned int)(counter == 0 ? gpu->pcie.tx_kbps : gpu->pcie.rx_kbps);
    return NVML_SUCCESS;
}

/* Two GPUs, both readable. */
static nvmlReturn_t enter_pair(const char *call, nvmlDevice_t one, nvmlDevice_t other, struct target *first,
                               struct target *second)
{
    nvmlReturn_t entered = enter_device(call, STATIC, one, first);
    return entered == NVML_SUCCESS ? enter_device(call, STATIC, other, second) : entered;
}

/* GPUs of one half of the node share a host bridge, the halves are two sockets. */
static unsigned common_ancestor(const struct target *first, const struct target *second)
{
    if (first->slot == second->slot)
        return NVML_TOPOLOGY_INTERNAL;
    return first->gpu->numa_node == second->gpu->numa_node ? NVML_TOPOLOGY_NODE : NVML_TOPOLOGY_SYSTEM;
}

NVML_CALL(nvmlDeviceGetTopologyCommonAncestor)(nvmlDevice_t one, nvmlDevice_t other, unsigned int *level)
{
    struct target first, second;
    nvmlReturn_t entered = enter_pair(CALL_NAME, one, other, &first, &second);
    if (entered != NVML_SUCCESS)
        return entered;
    REQUIRE_ARGUMENT(level);
    *level = common_ancestor(&first, &second);
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetTopologyNearestGpus)(nvmlDevice_t device, unsigned int level, unsigned int *count,
                                            nvmlDevice_t *devices)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(count);
    unsigned found = 0;
    for (int slot = 0; slot < target.state->node.gpus; slot++) {
        struct target other = {.state = target.state, .gpu = &target.state->gpu[slot], .slot = slot};
        if (slot == target.slot || !other.gpu->present || common_ancestor(&target, &other) > level)
            continue;
        if (devices && found < *count)
            devices[found] = device_handle(slot);
        found++;
    }
    *count = found;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceOnSameBoard)(nvmlDevice_t one, nvmlDevice_t other, int *same)
{
    struct target first, second;
    nvmlReturn_t entered = enter_pair(CALL_NAME, one, other, &first, &second);
    if (entered != NVML_SUCCESS)
        return entered;
    REQUIRE_ARGUMENT(same);
    *same = first.slot == second.slot;
    return NVML_SUCCESS;
}

static bool has_active_link(struct gpu *gpu)
{
    for (int i = 0; i < gpu->nvlink.links; i++)
        if (gpu->link[i].state == 1)
            return true;
    return false;
}

NVML_CALL(nvmlDeviceGetP2PStatus)(nvmlDevice_t one, nvmlDevice_t other, unsigned int index,
                                  unsigned int *status)
{
    struct target first, second;
    nvmlReturn_t entered = enter_pair(CALL_NAME, one, other, &first, &second);
    if (entered != NVML_SUCCESS)
        return entered;
    REQUIRE_ARGUMENT(status && index < NVML_P2P_CAPS_INDEX_UNKNOWN && first.slot != second.slot);
    bool nvlink = has_active_link(first.gpu) && has_active_link(second.gpu);
    *status = index != NVML_P2P_CAPS_INDEX_NVLINK || nvlink ? NVML_P2P_STATUS_OK : NVML_P2P_STATUS_NOT_SUPPORTED;
    return NVML_SUCCESS;
}
