/* The faults there are. */
#ifndef NVMLSIM_FAULT_TABLE_H
#define NVMLSIM_FAULT_TABLE_H

#include "state.h"

/* A fault is a change of a GPU's values, or a rule on calls. Both take arguments as "name=value name=value". */
struct fault {
    const char *name;
    const char *arguments; /* that it takes, with what they are when not given */
    const char *help;
    void (*change)(struct gpu *gpu, const char *arguments);
    void (*rule)(struct rule *rule, const char *arguments);
};
extern const struct fault faults[];
extern const int faults_known;

/* The text of an argument; false when it is not there. */
bool argument_text(const char *arguments, const char *name, char *text, size_t size);
/* Is this the kernel's name of an AER error? */
bool aer_name_exists(const char *name);
/* The number of an argument, or another one when it is not there or no number. */
int64_t argument(const char *arguments, const char *name, int64_t otherwise);

#endif
