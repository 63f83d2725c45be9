/* The node's files: ROOT/dev, ROOT/sys and ROOT/proc as the driver and the kernel would show them. */
#ifndef NVMLSIM_TREE_H
#define NVMLSIM_TREE_H

#include "state.h"

/* Keep the node's files under this folder. false and errno when it can not be. */
bool tree_choose(struct state *state, const char *root);
/* Bring them in line with the state; nothing to do when no folder was chosen. */
bool tree_update(struct state *state);

#endif
