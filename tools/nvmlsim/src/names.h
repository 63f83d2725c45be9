/* Dotted names of the values of the state: node.driver_version, gpu3.temperature, gpu*.link4.errors.replay. */
#ifndef NVMLSIM_NAMES_H
#define NVMLSIM_NAMES_H

#include "state.h"

/* One value that a name stands for: a number, or a string of at most size - 1 characters. */
struct named_value {
    const char *name;
    struct gpu *gpu; /* it belongs to; NULL for the node's */
    value *number;
    char *string;
    size_t size;
};

typedef void visit_value(const struct named_value *found, void *context);

/* Call `visit` for every value that the name, with * for any number, stands for. The number of them. */
int names_find(struct state *state, const char *name, visit_value *visit, void *context);
/* The same inside one GPU: the name is without "gpu0.". */
int names_find_in_gpu(struct gpu *gpu, const char *name, visit_value *visit, void *context);
/* Print all names, with * in the place of numbers. */
void names_print(void);

/* Assign text to a value. false: it is not a number, or too long. */
bool named_value_set(const struct named_value *found, const char *text);
bool number_parse(const char *text, int64_t *number);

#endif
