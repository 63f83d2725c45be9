/* What every call of the library goes through before it answers. */
#ifndef NVMLSIM_LIBRARY_H
#define NVMLSIM_LIBRARY_H

#include <stdio.h>
#include <string.h>

#include "state.h"

#define NVML_API __attribute__((visibility("default")))

/*
 * Begins a function of the library. Programs call the function of that name in lies.c, which calls this one and may
 * change its answer.
 */
#define NVML_CALL(name) nvmlReturn_t answer_##name
/* The name without "answer_". */
#define CALL_NAME (__func__ + 7)

/* What a call reads decides what it answers on a GPU that is lost or waits for a reset. */
enum access {
    CACHED, /* known since the driver attached: answered even by a lost GPU */
    STATIC, /* burnt in: answered by a GPU that waits for a reset */
    DYNAMIC, /* a reading of the device */
};

/* A device handle, resolved. `mig` is NULL for a whole GPU. */
struct target {
    struct state *state;
    struct gpu *gpu;
    int slot;
    struct mig_device *mig;
};

/* The state, or an error for the caller: not initialized, or what the node's rules say about this call. */
nvmlReturn_t enter_system(const char *call, struct state **state);
/* Only what the rules for this GPU say, for calls that entered and then turn out to be about it. */
nvmlReturn_t enter_gpu(const char *call, int slot, struct state *state);
/* The same for a call on a GPU or MIG device. */
nvmlReturn_t enter_any_device(const char *call, enum access access, nvmlDevice_t device, struct target *target);
/* The same for a call that MIG devices do not support. */
nvmlReturn_t enter_device(const char *call, enum access access, nvmlDevice_t device, struct target *target);

/*
 * First line of a call on a GPU: declares `gpu`, or returns the error. `supported` is any condition on `gpu`.
 */
#define DEVICE_CALL(device, access)                                                 \
    struct target target;                                                           \
    nvmlReturn_t entered = enter_device(CALL_NAME, access, device, &target);         \
    if (entered != NVML_SUCCESS)                                                    \
        return entered;                                                             \
    struct gpu *gpu = target.gpu;                                                   \
    (void)gpu

#define REQUIRE_ARGUMENT(condition)           \
    do {                                      \
        if (!(condition))                     \
            return NVML_ERROR_INVALID_ARGUMENT; \
    } while (0)

#define REQUIRE_SUPPORT(condition)          \
    do {                                    \
        if (!(condition))                   \
            return NVML_ERROR_NOT_SUPPORTED; \
    } while (0)

#define REQUIRE_VERSION(structure, type, number)                              \
    do {                                                                      \
        if ((structure)->version != NVML_STRUCT_VERSION(type, number))        \
            return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;                      \
    } while (0)

/* A call that fills one number. */
#define UINT_GETTER(call, access, supported, expression)        \
    NVML_CALL(call)(nvmlDevice_t device, unsigned int *result) \
    {                                                           \
        DEVICE_CALL(device, access);                            \
        REQUIRE_ARGUMENT(result);                               \
        REQUIRE_SUPPORT(supported);                             \
        *result = (unsigned int)(expression);                   \
        return NVML_SUCCESS;                                    \
    }

/* The node of this process, also before nvmlInit; NULL without one. */
struct state *node_state(void);
/* The slot of a handle of a GPU or MIG device, or -1. */
int slot_of_handle(uintptr_t device);

/* Handles are addresses in tables of this library. */
nvmlDevice_t device_handle(int slot);
nvmlDevice_t mig_handle(int slot, int index);

nvmlReturn_t copy_string(char *buffer, unsigned int length, const char *text);
void mig_uuid(const struct target *target, char uuid[48]);
void parse_uuid(const char *text, unsigned char bytes[16]);

#endif
