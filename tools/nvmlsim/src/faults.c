/*
 * Injecting and clearing faults.
 *
 * A fault of a GPU is a function on its values. The state remembers which faults were injected, so clearing one is:
 * what would the values be with and without it, starting from the healthy GPU? Those that differ become what they would
 * be without. Values that only `nvmlsim set` touched stay as they are.
 */
#define _GNU_SOURCE
#include "faults.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fault_table.h"

static bool fail(char *error, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error, size, format, arguments);
    va_end(arguments);
    return false;
}

void fault_print_help(void)
{
    for (int i = 0; i < faults_known; i++)
        printf("%-19s %-46s %s%s\n", faults[i].name, faults[i].arguments, faults[i].help,
               strstr(faults[i].arguments, "call=") ? "; without gpu= whichever GPU" : "");
    printf("%-19s %-46s %s\n", "xid", "code=79", "an event, once, for everyone who listens");
}

static int fault_index(const char *name)
{
    for (int i = 0; i < faults_known; i++)
        if (strcmp(faults[i].name, name) == 0)
            return i;
    return -1;
}

/* Is the slot in "*" or "0,3"? */
static bool slot_listed(struct state *state, const char *gpus, int slot)
{
    if (strcmp(gpus, "*") == 0)
        return slot < state->node.gpus;
    for (const char *text = gpus; *text;) {
        char *stop;
        if (strtol(text, &stop, 10) == slot && stop != text)
            return true;
        text = *stop == ',' ? stop + 1 : "";
    }
    return false;
}

static bool slots_valid(struct state *state, const char *gpus)
{
    if (strcmp(gpus, "*") == 0)
        return true;
    for (const char *text = gpus;;) {
        char *stop;
        long slot = strtol(text, &stop, 10);
        if (stop == text || slot < 0 || slot >= state->node.gpus)
            return false;
        if (*stop == '\0')
            return true;
        if (*stop != ',')
            return false;
        text = stop + 1;
    }
}

struct selection {
    int64_t fault; /* -1: any */
    const char *gpus; /* NULL: any */
};

static bool selected(struct state *state, const struct active_fault *active, const struct selection *selection)
{
    return (selection->fault < 0 || active->fault == selection->fault) &&
           (!selection->gpus || (active->gpu >= 0 && slot_listed(state, selection->gpus, (int)active->gpu)));
}

/* What healthy GPU and active faults make together, without the faults that `skip` selects. */
static void compose(struct state *state, int slot, const struct selection *skip, struct gpu *result)
{
    memcpy(result, &state->healthy[slot], sizeof *result);
    for (int64_t i = 0; i < state->faults; i++) {
        const struct active_fault *active = &state->fault[i];
        if (active->gpu == slot && faults[active->fault].change && !(skip && selected(state, active, skip)))
            faults[active->fault].change(result, active->arguments);
    }
}

/* Does the library next to the command export the function, in any version? */
static bool call_exists(const char *call)
{
    char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 32);
    if (length <= 0)
        return false;
    path[length] = '\0';
    char *slash = strrchr(path, '/');
    strcpy(slash + 1, "libnvidia-ml.so.1");
    void *library = dlopen(path, RTLD_LAZY);
    bool found = library && dlsym(library, call);
    for (int version = 1; library && !found && version <= 4; version++) {
        char name[80];
        snprintf(name, sizeof name, "%.64s_v%d", call, version);
        found = dlsym(library, name) != NULL;
    }
    return found;
}

static bool spent(struct rule *rule)
{
    return rule->kind == RULE_NONE || (rule->kind == RULE_ERROR && rule->count == 0) ||
           (rule->kind == RULE_HANG && rule->until_ns > 0 && rule->until_ns < monotonic_ns());
}

static void count_rules(struct state *state)
{
    uint32_t rules = 0;
    for (int i = 0; i < MAX_RULES; i++)
        rules += state->rule[i].kind != RULE_NONE;
    state->rules_in_use = rules;
}

static bool add_rule(struct state *state, int fault, int slot, const char *arguments)
{
    for (int i = 0; i < MAX_RULES; i++) {
        struct rule *rule = &state->rule[i];
        if (!spent(rule))
            continue;
        rule->kind = RULE_NONE;
        rule->generation++;
        rule->fault = fault;
        rule->gpu = slot;
        if (!argument_text(arguments, "call", rule->call, sizeof rule->call))
            strcpy(rule->call, "*");
        char *version = strstr(rule->call, "_v"); /* a rule is for all versions of a function */
        if (version)
            *version = '\0';
        if (strcmp(rule->call, "nvmlInitWithFlags") == 0)
            strcpy(rule->call, "nvmlInit");
        faults[fault].rule(rule, arguments);
        count_rules(state);
        return true;
    }
    return false;
}

static void remove_rules(struct state *state, const struct selection *selection)
{
    for (int i = 0; i < MAX_RULES; i++) {
        struct rule *rule = &state->rule[i];
        struct active_fault active = {.fault = rule->fault, .gpu = rule->gpu};
        if (selected(state, &active, selection))
            rule->kind = RULE_NONE;
    }
    count_rules(state);
}

/*
 * Is the text one of "a|b", or what a word in capitals there stands for? NAME is an AER error, FUNCTION is looked at
 * later; the rest are numbers, which are always right.
 */
static bool fits(const char *alternatives, const char *text)
{
    char *stop;
    strtod(text, &stop);
    if (stop != text && *stop == '\0')
        return true;
    for (const char *word = alternatives; *word; word += strspn(word, "|")) {
        size_t length = strcspn(word, "|");
        bool same = strlen(text) == length && strncmp(word, text, length) == 0;
        if ((same && !(word[0] >= 'A' && word[0] <= 'Z')) || strncmp(word, "FUNCTION", length) == 0 ||
            (strncmp(word, "NAME", length) == 0 && aer_name_exists(text)))
            return true;
        word += length;
    }
    return false;
}

static bool known_arguments(const char *known, int count, char **arguments, char *error, size_t size)
{
    for (int i = 0; i < count; i++) {
        char name[64], alternatives[64];
        size_t length = strcspn(arguments[i], "=");
        snprintf(name, sizeof name, "%.*s", (int)length, arguments[i]);
        if (arguments[i][length] != '=' || !argument_text(known, name, alternatives, sizeof alternatives) ||
            !fits(alternatives, arguments[i] + length + 1))
            return fail(error, size, "no such argument: %s (there is: %s)", arguments[i], known);
    }
    return true;
}

static bool inject_into(struct state *state, int fault, int slot, const char *arguments, char *error, size_t size)
{
    if (state->faults == MAX_FAULTS)
        return fail(error, size, "more than %d faults are active: clear some", MAX_FAULTS);
    if (faults[fault].rule && !add_rule(state, fault, slot, arguments))
        return fail(error, size, "more than %d faults of calls are active: clear some", MAX_RULES);
    struct active_fault *active = &state->fault[state->faults++];
    *active = (struct active_fault){.fault = fault, .gpu = slot};
    strcpy(active->arguments, arguments);
    if (faults[fault].change) {
        gpu_change_begin(&state->gpu[slot]);
        faults[fault].change(&state->gpu[slot], arguments);
        gpu_change_end(&state->gpu[slot]);
    }
    return true;
}

bool fault_inject(struct state *state, const char *name, const char *gpus, int count, char **arguments, char *error,
                  size_t size)
{
    bool xid = strcmp(name, "xid") == 0;
    int fault = fault_index(name);
    if (fault < 0 && !xid)
        return fail(error, size, "no fault is called %s: see `nvmlsim faults`", name);
    if (!known_arguments(xid ? "code=79" : faults[fault].arguments, count, arguments, error, size))
        return false;
    if (gpus && !slots_valid(state, gpus))
        return fail(error, size, "no such GPU: %s", gpus);
    if (gpus && fault >= 0 && faults[fault].rule && !strstr(faults[fault].arguments, "call="))
        return fail(error, size, "%s is not a fault of a GPU", name);

    char joined[sizeof state->fault[0].arguments] = "", call[64];
    for (int i = 0; i < count; i++) {
        size_t used = strlen(joined);
        if ((size_t)snprintf(joined + used, sizeof joined - used, "%s%s", used ? " " : "", arguments[i]) >=
            sizeof joined - used)
            return fail(error, size, "too many arguments");
    }
    if (argument_text(joined, "call", call, sizeof call) && strcmp(call, "*") != 0 && !call_exists(call))
        return fail(error, size, "the library has no function %s", call);
    if (!gpus && fault >= 0 && faults[fault].rule)
        return inject_into(state, fault, -1, joined, error, size);
    for (int slot = 0; slot < state->node.gpus; slot++) {
        if (!slot_listed(state, gpus ? gpus : "*", slot))
            continue;
        if (xid)
            event_add(state, slot, NVML_EVENT_XID_CRITICAL_ERROR, (uint64_t)argument(joined, "code", 79));
        else if (!inject_into(state, fault, slot, joined, error, size))
            return false;
    }
    return true;
}

static void restore(struct state *state, int slot, const struct selection *cleared)
{
    static struct gpu with, without;
    struct gpu *gpu = &state->gpu[slot];
    value *now = (value *)gpu, *before = (value *)&with, *after = (value *)&without;
    compose(state, slot, NULL, &with);
    compose(state, slot, cleared, &without);
    gpu_change_begin(gpu);
    for (int i = 0; i < GPU_VALUES; i++)
        if (before[i] != after[i])
            now[i] = (int64_t)after[i];
    gpu_change_end(gpu);
}

/* Energy and throttle times only grow, whatever is cleared. */
static void restore_in_full(struct state *state, int slot)
{
    struct gpu *gpu = &state->gpu[slot];
    value *now = (value *)gpu, *healthy = (value *)&state->healthy[slot];
    gpu_change_begin(gpu);
    for (int i = 0; i < GPU_VALUES; i++)
        if (!gpu_value_advances(i))
            now[i] = (int64_t)healthy[i];
    gpu_change_end(gpu);
}

bool fault_clear(struct state *state, const char *name, const char *gpus, char *error, size_t size)
{
    struct selection selection = {-1, gpus};
    if (name && (selection.fault = fault_index(name)) < 0)
        return fail(error, size, "no fault that lasts is called %s", name);
    if (gpus && !slots_valid(state, gpus))
        return fail(error, size, "no such GPU: %s", gpus);
    for (int slot = 0; slot < state->node.gpus; slot++) {
        if (gpus && !slot_listed(state, gpus, slot))
            continue;
        if (name)
            restore(state, slot, &selection);
        else
            restore_in_full(state, slot);
    }
    remove_rules(state, &selection);
    int64_t kept = 0;
    for (int64_t i = 0; i < state->faults; i++)
        if (!selected(state, &state->fault[i], &selection))
            state->fault[kept++] = state->fault[i];
    state->faults = kept;
    return true;
}

void fault_release(struct state *state)
{
    char ignored[8];
    fault_clear(state, "hang", NULL, ignored, sizeof ignored);
}

void fault_print_active(struct state *state)
{
    for (int64_t i = 0; i < state->faults; i++) {
        const struct active_fault *active = &state->fault[i];
        printf("%s", faults[active->fault].name);
        if (active->gpu >= 0)
            printf(" gpu=%d", (int)active->gpu);
        printf("%s%s\n", active->arguments[0] ? " " : "", active->arguments);
    }
}
