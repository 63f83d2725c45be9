/* Building a healthy node from a GPU model: a text file of values (see models/). */
#ifndef NVMLSIM_MODEL_H
#define NVMLSIM_MODEL_H

#include "state.h"

struct node_request {
    const char *model; /* name in the models folder, or the path of a file */
    int gpus;
    const char *driver; /* NULL: the model's */
    uint64_t seed;
    int mig_devices; /* 0: MIG off */
};

/* Fill *state. false: a sentence about what is wrong with the request is in `error`. */
bool model_build(struct state *state, const struct node_request *request, char *error, size_t size);
/* Print the names of the models. */
void model_list(void);
/* Give the GPU this many MIG devices, all of the smallest profile; 0 turns MIG off. */
void model_set_mig(struct gpu *gpu, int devices);

#endif
