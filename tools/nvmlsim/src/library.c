/* Start and end of the library, handles, and the rules that stand between a program and the answer to its call. */
#define _GNU_SOURCE
#include "library.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct nvmlDevice_st {
    char unused;
};
enum { HANDLES_PER_GPU = 1 + MAX_MIG_DEVICES };
static struct nvmlDevice_st handles[MAX_GPUS * HANDLES_PER_GPU];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Atomic unsigned references;
/* Stays mapped after nvmlShutdown: another thread may still be inside a call. */
static struct state *_Atomic shared;
static struct stat shared_file;

static int device_nodes[MAX_GPUS + 1];
static int device_nodes_open;

/* Does the rule speak about this call? A rule's name matches every version of a function. */
static bool rule_applies(struct rule *rule, const char *call)
{
    if (rule->kind == RULE_NONE)
        return false;
    if (strcmp(rule->call, "*") == 0)
        return true;
    size_t length = strlen(rule->call);
    return strncmp(rule->call, call, length) == 0 &&
           (call[length] == '\0' || (call[length] == '_' && call[length + 1] == 'v' && call[length + 3] == '\0'));
}

static bool still_hanging(struct rule *rule, int64_t generation)
{
    int64_t until = rule->until_ns;
    return rule->kind == RULE_HANG && rule->generation == generation && (until == 0 || monotonic_ns() < until);
}

/*
 * Hang, wait or fail as the rules for either of two GPUs say, where -1 stands for the rules that name no GPU. No lock
 * is held while asleep.
 */
static nvmlReturn_t apply_rules(struct state *state, const char *call, int one, int other)
{
    for (int i = 0; i < MAX_RULES; i++) {
        struct rule *rule = &state->rule[i];
        if ((rule->gpu != one && rule->gpu != other) || !rule_applies(rule, call))
            continue;
        int64_t generation = rule->generation;
        if (still_hanging(rule, generation)) {
            state->node.hanging++;
            for (uint32_t changes = state->changes; still_hanging(rule, generation); changes = state->changes)
                state_wait(state, changes, rule->until_ns);
            state->node.hanging--;
        } else if (rule->kind == RULE_CRASH) {
            raise(SIGSEGV);
        } else if (rule->kind == RULE_PRINT) {
            printf("NVML: %s was called\n", call);
            fprintf(stderr, "NVML: %s was called\n", call);
            fflush(stdout);
        } else if (rule->kind == RULE_SLOW) {
            int64_t delay = rule->delay_ms;
            struct timespec pause = {delay / 1000, delay % 1000 * 1000000};
            nanosleep(&pause, NULL);
        } else if (rule->kind == RULE_ERROR) {
            int64_t left = rule->count;
            while (left > 0 && !atomic_compare_exchange_weak(&rule->count, &left, left - 1))
                ;
            if (left != 0)
                return (nvmlReturn_t)rule->code;
        }
    }
    return NVML_SUCCESS;
}

static nvmlReturn_t enter(const char *call, int slot, struct state *state)
{
    atomic_fetch_add_explicit(&state->node.calls, 1, memory_order_relaxed);
    return state->rules_in_use ? apply_rules(state, call, -1, slot) : NVML_SUCCESS;
}

nvmlReturn_t enter_gpu(const char *call, int slot, struct state *state)
{
    return state->rules_in_use ? apply_rules(state, call, slot, slot) : NVML_SUCCESS;
}

nvmlReturn_t enter_system(const char *call, struct state **state)
{
    if (!references)
        return NVML_ERROR_UNINITIALIZED;
    *state = shared;
    return enter(call, -1, *state);
}

nvmlReturn_t enter_any_device(const char *call, enum access access, nvmlDevice_t device, struct target *target)
{
    if (!references)
        return NVML_ERROR_UNINITIALIZED;
    struct state *state = shared;
    uintptr_t offset = (uintptr_t)device - (uintptr_t)handles;
    if (offset >= sizeof handles)
        return NVML_ERROR_INVALID_ARGUMENT;
    int slot = (int)(offset / HANDLES_PER_GPU), part = (int)(offset % HANDLES_PER_GPU);
    if (slot >= state->node.gpus)
        return NVML_ERROR_INVALID_ARGUMENT;

    struct gpu *gpu = &state->gpu[slot];
    *target = (struct target){.state = state, .gpu = gpu, .slot = slot};
    nvmlReturn_t entered = enter(call, slot, state);
    if (entered != NVML_SUCCESS)
        return entered;
    if ((gpu->lost || !gpu->present) && access != CACHED)
        return NVML_ERROR_GPU_IS_LOST;
    if (gpu->reset_required && access == DYNAMIC)
        return NVML_ERROR_RESET_REQUIRED;
    if (part > 0) {
        target->mig = &gpu->mig_device[part - 1];
        if (!gpu->mig.mode || !target->mig->present)
            return NVML_ERROR_INVALID_ARGUMENT;
    }
    return NVML_SUCCESS;
}

int slot_of_handle(uintptr_t device)
{
    uintptr_t offset = device - (uintptr_t)handles;
    return offset < sizeof handles ? (int)(offset / HANDLES_PER_GPU) : -1;
}

nvmlReturn_t enter_device(const char *call, enum access access, nvmlDevice_t device, struct target *target)
{
    nvmlReturn_t entered = enter_any_device(call, access, device, target);
    return entered == NVML_SUCCESS && target->mig ? NVML_ERROR_NOT_SUPPORTED : entered;
}

nvmlDevice_t device_handle(int slot)
{
    return &handles[slot * HANDLES_PER_GPU];
}

nvmlDevice_t mig_handle(int slot, int index)
{
    return &handles[slot * HANDLES_PER_GPU + 1 + index];
}

nvmlReturn_t copy_string(char *buffer, unsigned int length, const char *text)
{
    REQUIRE_ARGUMENT(buffer);
    size_t size = strlen(text) + 1;
    if (length < size)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(buffer, text, size);
    return NVML_SUCCESS;
}

/*
 * The real library holds the device nodes open while it is initialized; whoever looks at /proc/PID/fd sees from it that
 * the driver is in use. Where the state has a fake /dev, so does this one.
 */
static void open_device_nodes(struct state *state)
{
    if (state->node.tree[0] == '\0')
        return;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/dev/nvidiactl", state->node.tree);
    for (int slot = -1; slot < state->node.gpus; slot++) {
        if (slot >= 0)
            snprintf(path, sizeof path, "%s/dev/nvidia%d", state->node.tree, slot);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd >= 0)
            device_nodes[device_nodes_open++] = fd;
    }
}

static void close_device_nodes(void)
{
    while (device_nodes_open > 0)
        close(device_nodes[--device_nodes_open]);
}

/*
 * Map the state that NVMLSIM_STATE names, again if it is another file than at the last start. Without the variable it
 * is a file in /dev, where a real library finds its driver too: a container needs no variable for it.
 */
static struct state *attach(void)
{
    const char *path = getenv("NVMLSIM_STATE");
    if (!path)
        path = "/dev/nvmlsim.state";
    struct stat file;
    if (stat(path, &file) < 0)
        return NULL;
    pthread_mutex_lock(&lock);
    struct state *state = shared;
    if (!state || file.st_ino != shared_file.st_ino || file.st_dev != shared_file.st_dev) {
        state = state_map(path);
        if (state) {
            shared = state;
            shared_file = file;
        }
    }
    pthread_mutex_unlock(&lock);
    return state;
}

struct state *node_state(void)
{
    return references ? shared : attach();
}

/*
 * The version of this copy of the library, which `make build/VERSION/libnvidia-ml.so.1` sets; empty: it fits any module,
 * as the library of the tests that replace neither.
 */
#ifndef LIBRARY_VERSION
#define LIBRARY_VERSION ""
#endif

NVML_CALL(nvmlInitWithFlags)(unsigned int flags)
{
    (void)flags;
    struct state *state = node_state();
    if (!state || state->node.driver_version[0] == '\0')
        return NVML_ERROR_DRIVER_NOT_LOADED;
    if (LIBRARY_VERSION[0] != '\0' && strcmp(LIBRARY_VERSION, state->node.driver_version) != 0)
        return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    nvmlReturn_t entered = enter("nvmlInit", -1, state);
    if (entered != NVML_SUCCESS)
        return entered;
    pthread_mutex_lock(&lock);
    if (references++ == 0)
        open_device_nodes(state);
    pthread_mutex_unlock(&lock);
    return NVML_SUCCESS;
}

NVML_CALL(nvmlInit_v2)(void)
{
    return answer_nvmlInitWithFlags(0);
}

NVML_CALL(nvmlInit)(void)
{
    return answer_nvmlInitWithFlags(0);
}

NVML_CALL(nvmlShutdown)(void)
{
    struct state *state;
    nvmlReturn_t entered = enter_system(CALL_NAME, &state);
    if (entered != NVML_SUCCESS)
        return entered;
    pthread_mutex_lock(&lock);
    nvmlReturn_t result = NVML_ERROR_UNINITIALIZED;
    if (references > 0) {
        result = NVML_SUCCESS;
        if (--references == 0)
            close_device_nodes();
    }
    pthread_mutex_unlock(&lock);
    return result;
}

NVML_API const char *nvmlErrorString(nvmlReturn_t result)
{
    static const char *const strings[] = {
        "Success",
        "Uninitialized",
        "Invalid Argument",
        "Not Supported",
        "Insufficient Permissions",
        "Already Initialized",
        "Not Found",
        "Insufficient Size",
        "Insufficient External Power",
        "Driver Not Loaded",
        "Timeout",
        "Interrupt Request Issue",
        "NVML Shared Library Not Found",
        "Function Not Found",
        "Corrupted infoROM",
        "GPU is lost",
        "GPU requires reset",
        "The operating system has blocked the request",
        "Driver/library version mismatch",
        "In use by another client",
        "Insufficient Memory",
        "No data",
        "The requested vgpu operation is not available on target device, because ECC is enabled",
        "Insufficient Resources",
        "Requested frequency not supported",
        "Argument version mismatch",
        "This API is deprecated",
        "The system is not ready for the request",
        "No GPUs found",
        "Resource not in correct state",
        "Reset type not supported",
    };
    return result < sizeof strings / sizeof *strings ? strings[result] : "Unknown Error";
}
