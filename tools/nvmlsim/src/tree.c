#define _GNU_SOURCE
#include "tree.h"
bool tree_choose(struct state *state, const char *root){(void)state;(void)root;return true;}
bool tree_update(struct state *state){(void)state;return true;}
