/* Faults by name: what `nvmlsim inject` and `nvmlsim clear` do to the state. The caller holds the state's lock. */
#ifndef NVMLSIM_FAULTS_H
#define NVMLSIM_FAULTS_H

#include "state.h"

/* All take one fault's name, a list of slots ("*", "3", "0,5", NULL: the default) and arguments "name=value". */
bool fault_inject(struct state *state, const char *name, const char *gpus, int count, char **arguments, char *error,
                  size_t size);
/* NULL for the name: all faults, and back to the healthy state in full. */
bool fault_clear(struct state *state, const char *name, const char *gpus, char *error, size_t size);
/* End every hang. */
void fault_release(struct state *state);
void fault_print_help(void);
void fault_print_active(struct state *state);

#endif
