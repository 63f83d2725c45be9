/* The state file: mapping, locking, and the values that are computed from others. */
#define _GNU_SOURCE
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct state *state_map(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    struct stat file;
    struct state *state = MAP_FAILED;
    if (fstat(fd, &file) == 0 && (size_t)file.st_size == sizeof *state)
        state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    else
        errno = EINVAL;
    close(fd);
    if (state == MAP_FAILED)
        return NULL;
    if (state->magic != STATE_MAGIC || state->version != STATE_VERSION || state->size != sizeof *state) {
        munmap(state, sizeof *state);
        errno = EINVAL;
        return NULL;
    }
    return state;
}

int state_write(const char *path, const struct state *initial)
{
    char temporary[PATH_MAX];
    snprintf(temporary, sizeof temporary, "%s.%d", path, (int)getpid());
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return -1;
    ssize_t written = write(fd, initial, sizeof *initial);
    if (close(fd) == 0 && written == (ssize_t)sizeof *initial && rename(temporary, path) == 0)
        return 0;
    int error = errno;
    unlink(temporary);
    errno = error;
    return -1;
}

int state_lock(const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0 && flock(fd, LOCK_EX) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

void state_changed(struct state *state)
{
    state->changes++;
    syscall(SYS_futex, &state->changes, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

void state_wait(struct state *state, uint32_t changes, int64_t until_ns)
{
    /* This kind of wait takes a point in time, not a length. */
    struct timespec until = {until_ns / 1000000000, until_ns % 1000000000};
    syscall(SYS_futex, &state->changes, FUTEX_WAIT_BITSET, changes, until_ns ? &until : NULL, NULL,
            FUTEX_BITSET_MATCH_ANY);
}

int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static const int throttle_bit[THROTTLE_REASONS] = {
    [THROTTLE_POWER_CAP] = CLOCKS_EVENT_SW_POWER_CAP,   [THROTTLE_SYNC_BOOST] = CLOCKS_EVENT_SYNC_BOOST,
    [THROTTLE_HW_SLOWDOWN] = CLOCKS_EVENT_HW_SLOWDOWN,  [THROTTLE_SW_THERMAL] = CLOCKS_EVENT_SW_THERMAL,
    [THROTTLE_HW_THERMAL] = CLOCKS_EVENT_HW_THERMAL,    [THROTTLE_POWER_BRAKE] = CLOCKS_EVENT_HW_POWER_BRAKE,
};

static int64_t energy_since(struct gpu *gpu, int64_t elapsed_ns)
{
    return (int64_t)((double)gpu->power.usage * (double)elapsed_ns / 1e9); /* mW * s = mJ */
}

void gpu_change_begin(struct gpu *gpu)
{
    gpu->sequence |= 1; /* it is odd already when a writer died in the middle */
    int64_t elapsed = monotonic_ns() - gpu->settled_at;
    gpu->energy += energy_since(gpu, elapsed);
    for (int reason = 0; reason < THROTTLE_REASONS; reason++)
        if (gpu->clocks_event_reasons & throttle_bit[reason])
            gpu->throttle_ns[reason] += elapsed;
}

void gpu_change_end(struct gpu *gpu)
{
    gpu->settled_at = monotonic_ns();
    gpu->sequence++;
}

bool gpu_value_advances(int index)
{
    size_t offset = (size_t)index * sizeof(value);
    return offset == offsetof(struct gpu, energy) ||
           (offset >= offsetof(struct gpu, throttle_ns) &&
            offset < offsetof(struct gpu, throttle_ns) + sizeof(((struct gpu *)0)->throttle_ns));
}

/* Run `read` when no change is under way; a writer that died in the middle must not stop the readers for good. */
static int64_t read_settled(struct gpu *gpu, int which, int64_t (*read)(struct gpu *, int, int64_t))
{
    for (int64_t give_up = 0;;) {
        int64_t before = gpu->sequence, now = monotonic_ns();
        int64_t result = read(gpu, which, now - gpu->settled_at);
        if ((before % 2 == 0 && gpu->sequence == before) || (give_up && now > give_up))
            return result;
        if (!give_up)
            give_up = now + 100000000;
        sched_yield();
    }
}

static int64_t read_energy(struct gpu *gpu, int which, int64_t elapsed)
{
    (void)which;
    return gpu->energy + energy_since(gpu, elapsed);
}

static int64_t read_throttle(struct gpu *gpu, int reason, int64_t elapsed)
{
    return gpu->throttle_ns[reason] + (gpu->clocks_event_reasons & throttle_bit[reason] ? elapsed : 0);
}

int64_t gpu_energy(struct gpu *gpu)
{
    return read_settled(gpu, 0, read_energy);
}

int64_t gpu_throttle_ns(struct gpu *gpu, enum throttle_reason reason)
{
    return read_settled(gpu, (int)reason, read_throttle);
}

int slot_of_index(struct state *state, unsigned index)
{
    for (int slot = 0; slot < state->node.gpus; slot++)
        if (state->gpu[slot].present && index-- == 0)
            return slot;
    return -1;
}

unsigned index_of_slot(struct state *state, int slot)
{
    unsigned index = 0;
    for (int lower = 0; lower < slot; lower++)
        index += state->gpu[lower].present != 0;
    return index;
}

unsigned gpu_count(struct state *state)
{
    return index_of_slot(state, (int)state->node.gpus);
}

unsigned pcie_generation_now(struct gpu *gpu)
{
    int64_t trained = gpu->pcie.generation, idle = gpu->pcie.idle_generation;
    return (unsigned)(gpu->utilization.gpu > 0 || trained < idle ? trained : idle);
}

int64_t gpu_margin(struct gpu *gpu)
{
    return gpu->threshold.gpu_max - gpu->temperature;
}

int64_t ecc_total(struct gpu *gpu, int counter, int type)
{
    /* The other locations are parts of SRAM. */
    return gpu->ecc.count[counter][type][NVML_MEMORY_LOCATION_DRAM] +
           gpu->ecc.count[counter][type][NVML_MEMORY_LOCATION_SRAM];
}

void event_add(struct state *state, int slot, uint64_t type, uint64_t data)
{
    struct event *event = &state->event[state->events_written % MAX_EVENTS];
    event->gpu = slot;
    event->type = (int64_t)type;
    event->data = (int64_t)data;
    state->events_written++;
}
