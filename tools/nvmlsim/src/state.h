/*
 * The simulated node: one fixed structure in a file that every process maps.
 *
 * Numbers are atomic 64-bit values, so programs that read and the command that writes need no common lock; writers take
 * turns with flock(), which the kernel gives back when one of them dies. Only values that advance with time (energy,
 * throttle counters) need more than one word to be read at once; `gpu.sequence` signals changes to their readers.
 */
#ifndef NVMLSIM_STATE_H
#define NVMLSIM_STATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nvml.h"

typedef _Atomic int64_t value;

enum {
    STATE_MAGIC = 0x4e564d4c, /* "NVML" */
    STATE_VERSION = 2,
    MAX_GPUS = 16,
    MAX_LINKS = NVML_NVLINK_MAX_LINKS,
    MAX_PROCESSES = 16,
    MAX_MIG_DEVICES = 8,
    MAX_SWITCHES = 8,
    MAX_RULES = 32,
    MAX_FAULTS = 256,
    MAX_EVENTS = 1024,
    MAX_RETIRED_PAGES = 64,
    MAX_LIES = 256,
    MAX_CALLS = 160,
    MAX_FIELDS = 512,
};

/* Error bits of PCIe's advanced error reporting, in the kernel's order. */
enum { AER_CORRECTABLE = 8, AER_UNCORRECTABLE = 18 };
extern const char *const aer_correctable_names[AER_CORRECTABLE];
extern const char *const aer_uncorrectable_names[AER_UNCORRECTABLE];

struct link {
    value state;
    value version;
    value speed_mbps;
    value remote_type; /* 0 GPU, 2 switch */
    value remote_device; /* index of the GPU or of the switch at the other end */
    value remote_link;
    struct {
        value replay, recovery, crc_flit, crc_data, ecc;
    } errors;
    /* NVLink 5 counts packets and recoveries instead of flits and replays. */
    struct {
        value xmit_packets, xmit_bytes, rcv_packets, rcv_bytes;
        value malformed_packets, buffer_overruns, rcv_errors, rcv_remote_errors, rcv_general_errors;
        value local_integrity_errors, xmit_discards;
        value recovery_successful, recovery_failed, recovery_events;
        value raw_ber, effective_errors, effective_ber, symbol_errors, symbol_ber;
        value fec[16];
    } counters;
};

struct process {
    value pid; /* 0: no process here */
    value used_memory;
    value graphics;
    value gpu_instance;
    value compute_instance;
};

struct mig_device {
    value present;
    value gpu_instance;
    value compute_instance;
    value slices;
    value memory;
    value used_memory;
    value multiprocessors;
};

enum throttle_reason {
    THROTTLE_POWER_CAP,
    THROTTLE_SYNC_BOOST,
    THROTTLE_HW_SLOWDOWN,
    THROTTLE_SW_THERMAL,
    THROTTLE_HW_THERMAL,
    THROTTLE_POWER_BRAKE,
    THROTTLE_REASONS,
};

struct gpu {
    value present; /* 0: the driver does not enumerate it */
    value on_bus; /* 0: /sys does not show it */
    value device_node; /* 0: it has no /dev/nvidiaN */
    value handed_over; /* 1: /sys shows it bound to vfio-pci */
    value lost;
    value reset_required;
    value inforom_corrupted;
    value recovery_action;

    value brand, architecture, cores, memory_bus_bits, module_id, numa_node, board_id;
    struct {
        value major, minor;
    } cuda;

    struct {
        value domain, bus, device, device_id, subsystem_id;
    } pci;
    struct {
        value generation; /* that the link trains to under load */
        value idle_generation; /* that it shifts down to when idle */
        value max_generation; /* of the GPU in this slot */
        value device_max_generation; /* of the GPU in the best of slots */
        value width, max_width;
        value replays, replay_rollovers;
        value tx_kbps, rx_kbps;
        value correctable, naks_received, receiver_errors, bad_tlp, naks_sent, bad_dllp, non_fatal, fatal;
        value unsupported_requests, lcrc_errors, lane_errors, l0_to_recovery;
    } pcie;
    struct {
        value correctable[AER_CORRECTABLE];
        value nonfatal[AER_UNCORRECTABLE];
        value fatal[AER_UNCORRECTABLE];
    } aer;
    struct {
        value correctable, nonfatal, fatal;
    } port; /* AER errors that the port above it has counted */
    value virtualization_mode; /* nvmlGpuVirtualizationMode_t */
    value addressing_mode; /* nvmlDeviceAddressingModeType_t */

    value temperature;
    value memory_temperature;
    struct {
        value shutdown, slowdown, memory_max, gpu_max;
    } threshold; /* degrees C; the margin is gpu_max - temperature */
    struct {
        value shutdown, slowdown, memory_max, gpu_max;
    } tlimit; /* the same as margins */

    struct {
        value usage, limit, default_limit, min_limit, max_limit, enforced_limit;
    } power; /* mW */
    value energy; /* mJ, advances with power.usage */

    struct {
        value graphics, sm, mem, video;
    } clocks, max_clocks, application_clocks, default_application_clocks;
    value clocks_event_reasons;
    value supported_clocks_event_reasons;
    value throttle_ns[THROTTLE_REASONS]; /* advances while the reason's bit is set */
    value performance_state;

    struct {
        value gpu, memory;
    } utilization;
    struct {
        value total, reserved, used;
    } memory;
    struct {
        value total, used;
    } bar1;

    struct {
        value mode, pending;
        value count[NVML_ECC_COUNTER_TYPE_COUNT][NVML_MEMORY_ERROR_TYPE_COUNT][NVML_MEMORY_LOCATION_COUNT];
    } ecc;
    struct {
        value volatile_parity, volatile_secded, aggregate_parity, aggregate_secded;
        value bucket_l2, bucket_sm, bucket_pcie, bucket_mcu, bucket_other;
        value threshold_exceeded;
    } sram;
    struct {
        value corrected, uncorrected, corrected_inactive, uncorrected_inactive, pending, failure;
        struct {
            value max, high, partial, low, none;
        } histogram;
    } remap;
    struct {
        value active, inactive, pending, histogram_max, histogram_none;
    } bank_remap;
    struct {
        value sbe, dbe, pending;
    } retired;
    struct {
        value channel_pending, tpc_pending;
    } repair;
    value unrepairable_memory;

    value persistence_mode, compute_mode;
    struct {
        value mode, pending, max_devices;
    } mig;

    struct {
        value links;
    } nvlink;
    struct {
        value state, status, clique, health_mask, health_summary;
    } fabric;
    struct {
        value links, max_bandwidth, status, errors, replays, replays_back_to_back;
    } c2c;
    struct {
        value slot, tray, host, peer_type;
    } platform;

    /* 1 where the device has such a thing; 0 makes the calls for it answer NOT_SUPPORTED. */
    struct {
        value ecc, sram_ecc_status, row_remap, bank_remap, retired_pages, repair_status, unrepairable_memory;
        value memory_temperature, margin_temperature, throttle_time, power_average;
        value nvlink_errors, nvlink_counters, fabric, recovery_action, mig, platform, pcie_counters;
    } supports;

    struct process process[MAX_PROCESSES];
    struct mig_device mig_device[MAX_MIG_DEVICES];
    struct link link[MAX_LINKS];

    /* From here on no fault changes anything. */
    value sequence; /* odd during a change */
    value settled_at; /* CLOCK_MONOTONIC, ns */
    char name[96];
    char uuid[48];
    char serial[32];
    char part_number[32];
    char vbios[32];
    char inforom_image[16];
};

/* The values that faults change, seen as one array. */
enum { GPU_VALUES = offsetof(struct gpu, sequence) / sizeof(value) };
/* Is this one of those that advance by themselves? */
bool gpu_value_advances(int index);

struct nvswitch {
    value domain, bus, device;
};

/* A rule that is put between a program and its calls. */
enum rule_kind { RULE_NONE, RULE_HANG, RULE_SLOW, RULE_ERROR, RULE_PRINT, RULE_CRASH };
struct rule {
    value kind; /* written last, so that no reader sees half a rule */
    value generation; /* of this place: a call that hung in the rule before is not held by the next one */
    int64_t fault; /* index of the fault that made it */
    value gpu; /* slot, or -1 for every call */
    value code; /* RULE_ERROR */
    value count; /* RULE_ERROR: how many calls are left; -1: all */
    value until_ns; /* RULE_HANG: CLOCK_MONOTONIC; 0: until released */
    value delay_ms; /* RULE_SLOW */
    char call[64]; /* function, "*" for all */
};

/* What a function answers instead of the truth; see lies.h. */
enum lie_part { LIE_CODE = 1, LIE_TYPE = 2, LIE_NUMBER = 4, LIE_REAL = 8, LIE_TEXT = 16, LIE_ZERO = 32, LIE_SHIFT = 64 };
struct lie {
    value parts; /* of enum lie_part; written last, 0: no lie here */
    int64_t gpu, field, argument, member; /* where it holds; -1: everywhere */
    int64_t code, type, bits;
    char call[64];
    char text[64];
    char words[192]; /* as they were given */
};

/* Only the command reads these; the array has no holes and is in the order of injection. */
struct active_fault {
    int64_t fault; /* index in the table of faults */
    int64_t gpu; /* slot, or -1 */
    char arguments[192]; /* "name=value name=value" */
};

struct event {
    value gpu;
    value type;
    value data;
};

struct node {
    value gpus; /* slots in use */
    value switches;
    value switch_device_id;
    value cuda_version;
    value calls; /* calls that programs made, for tests that nobody calls any more */
    value hanging; /* calls that are asleep in a hang; a program killed in one stays counted */
    char driver_version[80];
    char nvml_version[80];
    char cluster_uuid[48];
    char chassis_serial[16];
    char tree[1024]; /* root of the fake /dev, /sys, /proc; empty: none */
    struct nvswitch nvswitch[MAX_SWITCHES];
};

struct state {
    _Atomic uint32_t magic; /* written last by create */
    uint32_t version;
    uint64_t size;
    _Atomic uint32_t rules_in_use; /* the calls' fast path: nothing to look for at 0 */
    _Atomic uint32_t events_written; /* event k is in event[k % MAX_EVENTS] */
    _Atomic uint32_t changes; /* futex: grows with every change, for those who sleep until something happens */
    struct node node;
    struct gpu gpu[MAX_GPUS];
    struct gpu healthy[MAX_GPUS]; /* what `clear` goes back to */
    struct rule rule[MAX_RULES];
    int64_t faults;
    struct active_fault fault[MAX_FAULTS];
    struct event event[MAX_EVENTS];
    _Atomic uint32_t lies_in_use;
    struct lie lie[MAX_LIES];
    value called[MAX_CALLS]; /* how often, by place in calls.h */
    value field_asked[MAX_FIELDS];
};

/* Map the state file for reading and writing; NULL and errno when it is missing or no state of this version. */
struct state *state_map(const char *path);
/* Make a state file that holds *initial, replacing another atomically. 0, or -1 and errno. */
int state_write(const char *path, const struct state *initial);
/* Keep other writers out until the descriptor is closed. */
int state_lock(const char *path);

int64_t monotonic_ns(void);

/*
 * A writer's change of a GPU: it begins by bringing the advancing values up to now, so that what drives them may
 * change, and readers of those values wait for its end.
 */
void gpu_change_begin(struct gpu *gpu);
void gpu_change_end(struct gpu *gpu);
/* Read an advancing value of the GPU, as of now. */
int64_t gpu_energy(struct gpu *gpu);
int64_t gpu_throttle_ns(struct gpu *gpu, enum throttle_reason reason);

/* Enumeration: the slot of the index-th GPU that is present, or -1; the number of them; the index of a slot. */
int slot_of_index(struct state *state, unsigned index);
unsigned gpu_count(struct state *state);
unsigned index_of_slot(struct state *state, int slot);

unsigned pcie_generation_now(struct gpu *gpu);
int64_t gpu_margin(struct gpu *gpu);
int64_t ecc_total(struct gpu *gpu, int counter, int type);

/* Wake those who sleep in state_wait. */
void state_changed(struct state *state);
/* Sleep until `changes` is no longer what it was, or the time (CLOCK_MONOTONIC; 0: no limit) has come. */
void state_wait(struct state *state, uint32_t changes, int64_t until_ns);

/* Put an event where every event set finds it. */
void event_add(struct state *state, int slot, uint64_t type, uint64_t data);

#endif
