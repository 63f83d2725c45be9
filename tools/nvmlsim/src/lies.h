/* Lies: what a function answers instead of the truth. The state holds them, answers.c tells them. */
#ifndef NVMLSIM_LIES_H
#define NVMLSIM_LIES_H

#include <stdbool.h>
#include <stddef.h>

#include "state.h"

/* A function of the library, and the description of its answer (see calls.h). */
struct call {
    const char *name;
    const char *answer;
};
extern const struct call calls[];
extern const int calls_known;

/* Is it the function that is wanted, in whichever version? */
bool same_call(const char *wanted, const char *call);

/* Add the lie of the words FUNCTION [NAME=VALUE...]. False, and what is wrong with it in `error`. */
bool lie_add(struct state *state, int count, char **words, char *error, size_t size);
/* End the lies of a function, or all of them. */
void lies_end(struct state *state, const char *call);

void lies_print_help(void);
void lies_print(struct state *state);
void calls_print(struct state *state);

#endif
