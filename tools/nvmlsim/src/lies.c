/* Adding, listing and ending lies. */
#define _GNU_SOURCE
#include "lies.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct call calls[] = {
#define CALL(name, answer) {#name, answer},
#include "calls.h"
#undef CALL
};
const int calls_known = sizeof calls / sizeof *calls;
_Static_assert(sizeof calls / sizeof *calls <= MAX_CALLS, "the state has a place for every function");

void lies_print_help(void)
{
    puts("nvmlsim lie STATE FUNCTION [gpu=N] [field=ID] [argument=N] [member=N] ANSWER...\n"
         "\n"
         "Where it holds; everywhere without:\n"
         "  gpu=N         calls about the GPU in this slot\n"
         "  field=ID      only this value of nvmlDeviceGetFieldValues\n"
         "  argument=N    calls whose second argument is N: a threshold, a clock, a link\n"
         "  member=N      only this number of the answer, counted from 0\n"
         "\n"
         "What it answers; several of them together are one answer:\n"
         "  code=N        this return code, also an unknown or a negative one; of a field value: its own\n"
         "  type=N        a field value of this nvmlValueType_t, also an unknown one\n"
         "  value=N       this number, of up to 64 bits: value=-1 value=0xffffffffffffffff\n"
         "  value=X.Y     a double, where an integer is usual its bits: value=0.5 value=1e300 value=nan value=inf\n"
         "  text=TEXT     this text; text=@empty, text=@long (no NUL), text=@invalid (no UTF-8), text=@control\n"
         "  zero=1        nothing but zeros\n"
         "  shift=1       a structure of another version: every member four bytes further\n"
         "\n"
         "Functions that answer with more than a return code, and what they answer (src/calls.h):");
    for (int i = 0; i < calls_known; i++)
        if (calls[i].answer[0])
            printf("  %-46s %s\n", calls[i].name, calls[i].answer);
}

static bool fail(char *error, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error, size, format, arguments);
    va_end(arguments);
    return false;
}

bool same_call(const char *wanted, const char *call)
{
    size_t length = strlen(wanted);
    if (strcmp(wanted, "nvmlInit") == 0)
        return strncmp(call, wanted, length) == 0; /* pynvml calls nvmlInitWithFlags */
    return strncmp(wanted, call, length) == 0 &&
           (call[length] == '\0' || (call[length] == '_' && call[length + 1] == 'v' && isdigit(call[length + 2])));
}

/* Is there such a function, with one of these members in its answer? */
static bool call_answers(const char *wanted, const char *members)
{
    for (int i = 0; i < calls_known; i++)
        if (same_call(wanted, calls[i].name) && (!members || strpbrk(calls[i].answer, members)))
            return true;
    return false;
}

static bool whole_number(const char *text, int64_t *number)
{
    char *stop;
    *number = text[0] == '-' ? strtoll(text, &stop, 0) : (int64_t)strtoull(text, &stop, 0);
    return stop != text && *stop == '\0';
}

static bool number_of(struct lie *lie, const char *text)
{
    if (whole_number(text, &lie->bits)) {
        lie->parts |= LIE_NUMBER;
        return true;
    }
    char *stop;
    double real = strtod(text, &stop);
    memcpy(&lie->bits, &real, sizeof real);
    lie->parts |= LIE_REAL;
    return stop != text && *stop == '\0';
}

static bool take_word(struct lie *lie, const char *name, const char *text)
{
    struct {
        const char *name;
        int64_t *place;
        enum lie_part part;
    } words[] = {
        {"gpu", &lie->gpu, 0},           {"field", &lie->field, 0},        {"argument", &lie->argument, 0},
        {"member", &lie->member, 0},     {"code", &lie->code, LIE_CODE},   {"type", &lie->type, LIE_TYPE},
        {"zero", NULL, LIE_ZERO},        {"shift", NULL, LIE_SHIFT},
    };
    int64_t number;
    if (strcmp(name, "text") == 0) {
        lie->parts |= LIE_TEXT;
        return snprintf(lie->text, sizeof lie->text, "%s", text) < (int)sizeof lie->text;
    }
    if (strcmp(name, "value") == 0)
        return number_of(lie, text);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(name, words[i].name) != 0 || !whole_number(text, &number))
            continue;
        if (words[i].place)
            *words[i].place = number;
        lie->parts |= words[i].part;
        return true;
    }
    return false;
}

static bool lie_fits(const struct lie *lie, int64_t gpus, char *error, size_t size)
{
    if (!lie->parts)
        return fail(error, size, "%s: what does it answer? see `nvmlsim lies`", lie->call);
    if (lie->gpu >= gpus)
        return fail(error, size, "no such GPU: %lld", (long long)lie->gpu);
    if ((lie->field >= 0 || (lie->parts & LIE_TYPE)) && !call_answers(lie->call, "F"))
        return fail(error, size, "%s answers no field values", lie->call);
    if ((lie->parts & LIE_TEXT) && !call_answers(lie->call, "s"))
        return fail(error, size, "%s answers no text", lie->call);
    return true;
}

bool lie_add(struct state *state, int count, char **words, char *error, size_t size)
{
    struct lie lie = {.gpu = -1, .field = -1, .argument = -1, .member = -1};
    if (count < 1 || !call_answers(words[0], NULL))
        return fail(error, size, "the library has no function %s", count < 1 ? "" : words[0]);
    snprintf(lie.call, sizeof lie.call, "%s", words[0]);
    for (int i = 0; i < count; i++) {
        size_t used = strlen(lie.words);
        char name[16];
        size_t length = strcspn(words[i], "=");
        snprintf(name, sizeof name, "%.*s", (int)length, words[i]);
        if (i > 0 && (words[i][length] != '=' || !take_word(&lie, name, words[i] + length + 1)))
            return fail(error, size, "no such lie: %s (see `nvmlsim lies`)", words[i]);
        if (snprintf(lie.words + used, sizeof lie.words - used, "%s%s", used ? " " : "", words[i]) >=
            (int)(sizeof lie.words - used))
            return fail(error, size, "%s: too many words", lie.call);
    }
    if (!lie_fits(&lie, state->node.gpus, error, size))
        return false;
    for (int i = 0; i < MAX_LIES; i++) {
        if (state->lie[i].parts)
            continue;
        int64_t parts = lie.parts;
        lie.parts = 0;
        memcpy(&state->lie[i], &lie, sizeof lie);
        state->lie[i].parts = parts;
        state->lies_in_use++;
        return true;
    }
    return fail(error, size, "more than %d lies are active: end some with `nvmlsim truth`", MAX_LIES);
}

void lies_end(struct state *state, const char *call)
{
    uint32_t left = 0;
    for (int i = 0; i < MAX_LIES; i++) {
        if (!call || strcmp(state->lie[i].call, call) == 0)
            state->lie[i].parts = 0;
        left += state->lie[i].parts != 0;
    }
    state->lies_in_use = left;
}

void lies_print(struct state *state)
{
    for (int i = 0; i < MAX_LIES; i++)
        if (state->lie[i].parts)
            printf("%s\n", state->lie[i].words);
}

void calls_print(struct state *state)
{
    for (int i = 0; i < calls_known; i++)
        if (state->called[i])
            printf("%s %lld\n", calls[i].name, (long long)state->called[i]);
    for (int field = 0; field < MAX_FIELDS; field++)
        if (state->field_asked[field])
            printf("field=%d %lld\n", field, (long long)state->field_asked[field]);
}
