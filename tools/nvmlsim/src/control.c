/* nvmlsim: the command that makes and changes a simulated node while programs use it. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "faults.h"
#include "lies.h"
#include "model.h"
#include "names.h"
#include "state.h"
#include "tree.h"

static const char usage[] =
    "A simulated NVIDIA driver. Programs see the node of a state file with\n"
    "    LD_LIBRARY_PATH=<folder of libnvidia-ml.so.1> NVMLSIM_STATE=STATE program\n"
    "\n"
    "nvmlsim create STATE --model NAME|FILE --gpus N [--driver VERSION] [--seed N] [--mig N]\n"
    "nvmlsim models                            the models there are\n"
    "nvmlsim set STATE NAME=VALUE...           give values: gpu3.temperature=85 gpu*.link4.state=0\n"
    "nvmlsim add STATE NAME=NUMBER...          add to values\n"
    "nvmlsim get STATE NAME...                 print values; with * as NAME=VALUE lines\n"
    "nvmlsim names                             the names of all values\n"
    "nvmlsim inject STATE FAULT [gpu=N,N|*] [ARGUMENT=VALUE...]\n"
    "                                          without gpu= every GPU\n"
    "nvmlsim clear STATE [FAULT] [gpu=N,N|*]   without FAULT everything is healthy again\n"
    "nvmlsim release STATE                     end every hang\n"
    "nvmlsim faults [STATE]                    the faults there are; of a state: those that are active\n"
    "nvmlsim lie STATE FUNCTION [gpu=N] [WHERE=N...] ANSWER...\n"
    "                                          make a function answer something else; `nvmlsim lies` says what\n"
    "nvmlsim lies [STATE]                      the lies and functions there are; of a state: those that are active\n"
    "nvmlsim truth STATE [FUNCTION]            end the lies of a function, or all of them, as `clear` does too\n"
    "nvmlsim calls STATE                       the functions and field values that programs have asked for\n"
    "nvmlsim tree STATE ROOT                   write ROOT/dev, ROOT/sys and ROOT/proc of the node; from then on\n"
    "                                          every command keeps them in line with the state\n"
    "\n"
    "GPUs are named by their slot: gpu3 stays gpu3 when gpu0 is dropped and its NVML index becomes 2.\n";

static int complain(const char *format, const char *what)
{
    fprintf(stderr, "nvmlsim: ");
    fprintf(stderr, format, what);
    fprintf(stderr, "\n");
    return 1;
}

static int create(const char *path, int count, char **words)
{
    static struct state state;
    struct node_request request = {.model = "h100-sxm", .gpus = 8, .seed = 1};
    for (int i = 0; i < count; i += 2) {
        int64_t number = 0;
        bool is_number = i + 1 < count && number_parse(words[i + 1], &number);
        if (i + 1 == count)
            return complain("%s: a value is missing", words[i]);
        if (strcmp(words[i], "--model") == 0)
            request.model = words[i + 1];
        else if (strcmp(words[i], "--driver") == 0)
            request.driver = words[i + 1];
        else if (strcmp(words[i], "--gpus") == 0 && is_number)
            request.gpus = (int)number;
        else if (strcmp(words[i], "--seed") == 0 && is_number)
            request.seed = (uint64_t)number;
        else if (strcmp(words[i], "--mig") == 0 && is_number)
            request.mig_devices = (int)number;
        else
            return complain("no such option, or no such value for it: %s", words[i]);
    }
    char error[512];
    if (!model_build(&state, &request, error, sizeof error))
        return complain("%s", error);
    if (state_write(path, &state) < 0)
        return complain("%s", strerror(errno));
    return 0;
}

struct change {
    const char *text;
    bool add;
    bool ok;
};

static void change_value(const struct named_value *found, void *context)
{
    struct change *change = context;
    int64_t number;
    if (found->gpu)
        gpu_change_begin(found->gpu);
    if (!change->add)
        change->ok &= named_value_set(found, change->text);
    else if (found->number && number_parse(change->text, &number))
        *found->number += number;
    else
        change->ok = false;
    if (found->gpu)
        gpu_change_end(found->gpu);
}

static int set_values(struct state *state, bool add, int count, char **words)
{
    for (int i = 0; i < count; i++) {
        char *text = strchr(words[i], '=');
        if (!text)
            return complain("%s: NAME=VALUE is wanted", words[i]);
        *text++ = '\0';
        struct change change = {text, add, true};
        if (names_find(state, words[i], change_value, &change) == 0)
            return complain("no value is called %s: see `nvmlsim names`", words[i]);
        if (!change.ok)
            return complain("not a value for it: %s", text);
    }
    return 0;
}

static void print_value(const struct named_value *found, void *context)
{
    bool *with_name = context;
    if (found->gpu) {
        gpu_change_begin(found->gpu); /* brings energy and throttle times up to now */
        gpu_change_end(found->gpu);
    }
    if (*with_name)
        printf("%s=", found->name);
    if (found->string)
        printf("%s\n", found->string);
    else
        printf("%lld\n", (long long)*found->number);
}

static int get_values(struct state *state, int count, char **words)
{
    for (int i = 0; i < count; i++) {
        bool with_name = strchr(words[i], '*') != NULL;
        if (names_find(state, words[i], print_value, &with_name) == 0)
            return complain("no value is called %s: see `nvmlsim names`", words[i]);
    }
    return 0;
}

/* inject STATE FAULT words..., clear STATE [FAULT] words...: gpu= is for both, the rest for the fault. */
static int change_fault(struct state *state, bool inject, int count, char **words)
{
    const char *name = NULL, *gpus = NULL;
    char *arguments[16], error[512];
    int given = 0;
    for (int i = 0; i < count; i++) {
        if (strncmp(words[i], "gpu=", 4) == 0)
            gpus = words[i] + 4;
        else if (!name && !strchr(words[i], '='))
            name = words[i];
        else if (inject && given < 16)
            arguments[given++] = words[i];
        else
            return complain("what is %s?", words[i]);
    }
    if (inject && !name)
        return complain("%s", "which fault? see `nvmlsim faults`");
    if (!inject && !name && !gpus)
        lies_end(state, NULL);
    bool done = inject ? fault_inject(state, name, gpus, given, arguments, error, sizeof error)
                       : fault_clear(state, name, gpus, error, sizeof error);
    return done ? 0 : complain("%s", error);
}

static int run(struct state *state, const char *verb, int count, char **words)
{
    if (strcmp(verb, "set") == 0)
        return set_values(state, false, count, words);
    if (strcmp(verb, "add") == 0)
        return set_values(state, true, count, words);
    if (strcmp(verb, "get") == 0)
        return get_values(state, count, words);
    if (strcmp(verb, "inject") == 0)
        return change_fault(state, true, count, words);
    if (strcmp(verb, "clear") == 0)
        return change_fault(state, false, count, words);
    if (strcmp(verb, "release") == 0) {
        fault_release(state);
        return 0;
    }
    if (strcmp(verb, "faults") == 0) {
        fault_print_active(state);
        return 0;
    }
    if (strcmp(verb, "lie") == 0) {
        char error[256];
        return lie_add(state, count, words, error, sizeof error) ? 0 : complain("%s", error);
    }
    if (strcmp(verb, "lies") == 0) {
        lies_print(state);
        return 0;
    }
    if (strcmp(verb, "truth") == 0) {
        lies_end(state, count ? words[0] : NULL);
        return 0;
    }
    if (strcmp(verb, "calls") == 0) {
        calls_print(state);
        return 0;
    }
    if (strcmp(verb, "tree") == 0 && count == 1)
        return tree_choose(state, words[0]) ? 0 : complain("%s", strerror(errno));
    return complain("no such command: %s (see nvmlsim --help)", verb);
}

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "--help";
    if (strcmp(verb, "--help") == 0 || strcmp(verb, "-h") == 0) {
        fputs(usage, stdout);
        return 0;
    }
    if (argc == 2 && strcmp(verb, "models") == 0) {
        model_list();
        return 0;
    }
    if (argc == 2 && strcmp(verb, "names") == 0) {
        names_print();
        return 0;
    }
    if (argc == 2 && strcmp(verb, "faults") == 0) {
        fault_print_help();
        return 0;
    }
    if (argc == 2 && strcmp(verb, "lies") == 0) {
        lies_print_help();
        return 0;
    }
    if (argc < 3)
        return complain("%s: which state?", verb);
    if (strcmp(verb, "create") == 0)
        return create(argv[2], argc - 3, argv + 3);

    int lock = state_lock(argv[2]);
    struct state *state = lock < 0 ? NULL : state_map(argv[2]);
    if (!state)
        return complain("%s: no state of a node", argv[2]);
    int status = run(state, verb, argc - 3, argv + 3);
    state_changed(state);
    if (!tree_update(state))
        status = complain("the tree could not be written: %s", strerror(errno));
    close(lock);
    return status;
}
