/* Event sets: a position in the state's ring of events, and which events of which GPUs are wanted from it. */
#include <pthread.h>
#include <stdlib.h>

#include "library.h"

/* What a data centre GPU can report: ECC, performance state, XID, clocks, MIG, memory and recovery events. */
enum { SUPPORTED_EVENTS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x100 | 0x200 | 0x400 | 0x800 };

struct nvmlEventSet_st {
    pthread_mutex_t lock; /* two threads may wait on one set; an event goes to one of them */
    uint64_t wanted[MAX_GPUS];
    uint32_t next; /* number of the first event not looked at */
    bool listening; /* from the first registration on */
};

NVML_CALL(nvmlEventSetCreate)(nvmlEventSet_t *set)
{
    struct state *state;
    nvmlReturn_t entered = enter_system(CALL_NAME, &state);
    if (entered != NVML_SUCCESS)
        return entered;
    REQUIRE_ARGUMENT(set);
    nvmlEventSet_t made = calloc(1, sizeof *made);
    if (!made)
        return NVML_ERROR_MEMORY;
    pthread_mutex_init(&made->lock, NULL);
    *set = made;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlEventSetFree)(nvmlEventSet_t set)
{
    struct state *state;
    nvmlReturn_t entered = enter_system(CALL_NAME, &state);
    if (entered != NVML_SUCCESS)
        return entered;
    REQUIRE_ARGUMENT(set);
    pthread_mutex_destroy(&set->lock);
    free(set);
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceGetSupportedEventTypes)(nvmlDevice_t device, unsigned long long *types)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(types);
    *types = SUPPORTED_EVENTS;
    return NVML_SUCCESS;
}

NVML_CALL(nvmlDeviceRegisterEvents)(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set)
{
    DEVICE_CALL(device, STATIC);
    REQUIRE_ARGUMENT(set);
    REQUIRE_SUPPORT((types & ~(unsigned long long)SUPPORTED_EVENTS) == 0);
    pthread_mutex_lock(&set->lock);
    if (!set->listening)
        set->next = target.state->events_written;
    set->listening = true;
    set->wanted[target.slot] |= types;
    pthread_mutex_unlock(&set->lock);
    return NVML_SUCCESS;
}

/* The next event that the set wants. */
static bool take_event(struct state *state, nvmlEventSet_t set, nvmlEventData_t *data)
{
    bool taken = false;
    pthread_mutex_lock(&set->lock);
    uint32_t written = state->events_written;
    if (written - set->next > MAX_EVENTS)
        set->next = written - MAX_EVENTS; /* the oldest were overwritten */
    while (set->listening && !taken && set->next != written) {
        struct event *event = &state->event[set->next++ % MAX_EVENTS];
        int slot = (int)event->gpu;
        taken = (set->wanted[slot] & (uint64_t)event->type) != 0;
        if (taken)
            *data = (nvmlEventData_t){
                .device = device_handle(slot),
                .eventType = (unsigned long long)event->type,
                .eventData = (unsigned long long)event->data,
                .gpuInstanceId = 0xffffffff,
                .computeInstanceId = 0xffffffff,
            };
    }
    pthread_mutex_unlock(&set->lock);
    return taken;
}

static bool lost_one(struct state *state, nvmlEventSet_t set)
{
    for (int slot = 0; slot < state->node.gpus; slot++)
        if (set->wanted[slot] && (state->gpu[slot].lost || !state->gpu[slot].present))
            return true;
    return false;
}

/*
 * A GPU that fell off the bus makes every wait return at once, as the real driver does once the events before it are
 * taken.
 */
static nvmlReturn_t wait_event(const char *call, nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
    struct state *state;
    nvmlReturn_t entered = enter_system(call, &state);
    if (entered != NVML_SUCCESS)
        return entered;
    REQUIRE_ARGUMENT(set && data);
    int64_t deadline = monotonic_ns() + timeout_ms * INT64_C(1000000);
    for (;;) {
        uint32_t changes = state->changes;
        if (take_event(state, set, data))
            return NVML_SUCCESS;
        if (lost_one(state, set))
            return NVML_ERROR_GPU_IS_LOST;
        if (monotonic_ns() >= deadline)
            return NVML_ERROR_TIMEOUT;
        state_wait(state, changes, deadline);
    }
}

NVML_CALL(nvmlEventSetWait_v2)(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
    return wait_event("nvmlEventSetWait", set, data, timeout_ms);
}

NVML_CALL(nvmlEventSetWait)(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
    return wait_event("nvmlEventSetWait", set, data, timeout_ms);
}
