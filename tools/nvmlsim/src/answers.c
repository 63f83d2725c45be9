/*
 * The functions that programs call. Each calls the function of its name in another file, then applies the lies.
 *
 * All arguments of NVML are pointers and integers, at most six: in the calling conventions of x86-64 and AArch64 they
 * are in registers, so that one wrapper of six words passes on those of every function.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <stdlib.h>

#include "library.h"
#include "lies.h"

enum { ARGUMENTS = 6 };
typedef uintptr_t word;
typedef nvmlReturn_t function(word, word, word, word, word, word);

/* One call while it is answered. */
struct answering {
    struct lie *lie;
    const word *arguments;
    unsigned room; /* how many records fit where argument 1 pointed to before the call */
    int member; /* number of the first number of the next output */
};

static bool lie_applies(struct lie *lie, const char *call, int slot, const word *arguments)
{
    return lie->parts && (lie->gpu < 0 || lie->gpu == slot) && same_call(lie->call, call) &&
           (lie->argument < 0 || (unsigned)arguments[1] == (unsigned)lie->argument);
}

static void put_text(char *buffer, size_t size, const char *text)
{
    if (strcmp(text, "@empty") == 0)
        text = "";
    else if (strcmp(text, "@invalid") == 0)
        text = "\xff\xfe\xed\xa0\x80";
    else if (strcmp(text, "@control") == 0)
        text = "\033[2J\r\n\007NVIDIA";
    else if (strcmp(text, "@long") == 0) {
        memset(buffer, 'x', size);
        return;
    }
    strncpy(buffer, text, size); /* without a NUL where there is no room for one */
}

static void put_field(struct lie *lie, nvmlFieldValue_t *field)
{
    if (lie->field >= 0 && field->fieldId != (unsigned)lie->field)
        return;
    if (lie->parts & LIE_ZERO) {
        memset(field, 0, sizeof *field);
        return;
    }
    if (lie->parts & (LIE_TYPE | LIE_NUMBER | LIE_REAL)) {
        if (field->nvmlReturn != NVML_SUCCESS) {
            field->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
            field->value.ullVal = 0;
        }
        field->nvmlReturn = NVML_SUCCESS;
    }
    if (lie->parts & LIE_REAL)
        field->valueType = 0;
    if (lie->parts & LIE_TYPE)
        field->valueType = (unsigned)lie->type;
    if (lie->parts & (LIE_NUMBER | LIE_REAL)) {
        int64_t bits = lie->bits;
        if ((lie->parts & LIE_NUMBER) && field->valueType == 0) {
            double real = (double)bits;
            memcpy(&bits, &real, sizeof bits);
        }
        memcpy(&field->value, &bits, sizeof bits);
    }
    if (lie->parts & LIE_CODE)
        field->nvmlReturn = (nvmlReturn_t)lie->code;
}

static size_t size_of(char member)
{
    return member == 'Q' || member == 'P' ? 8 : member == 'B' || member == 's' || member == 'b' ? 1 : 4;
}

/* Walk over the members of one structure, change what the lie changes, and return the structure's size. */
static size_t put_members(struct lie *lie, int number, const char *members, char *base, size_t limit)
{
    size_t offset = 0, widest = 1;
    for (const char *at = members; *at && *at != ' ';) {
        char member = *at++;
        size_t count = isdigit((unsigned char)*at) ? (size_t)strtol(at, (char **)&at, 10) : 1;
        size_t size = size_of(member), start = (offset + size - 1) / size * size;
        widest = size > widest ? size : widest;
        offset = start + size * count;
        if (offset > limit)
            return limit;
        if (lie->parts & LIE_ZERO)
            memset(base + start, 0, size * count);
        else if (member == 's' && (lie->parts & LIE_TEXT))
            put_text(base + start, count, lie->text);
        else if (strchr("IQBP", member) && (lie->parts & (LIE_NUMBER | LIE_REAL)) &&
                 (lie->member < 0 || lie->member == number))
            memcpy(base + start, &lie->bits, size); /* little-endian: the lowest bytes */
        number += strchr("IQBP", member) != NULL;
    }
    size_t whole = (offset + widest - 1) / widest * widest;
    if ((lie->parts & LIE_SHIFT) && offset > 4)
        memmove(base + 4, base, offset - 4);
    return whole < limit ? whole : limit;
}

static int numbers_of(const char *members)
{
    int numbers = 0;
    for (; *members && *members != ' '; members++)
        numbers += strchr("IQBP", *members) != NULL;
    return numbers;
}

/* Change one output: "ARGUMENT:MEMBERS". All records of a list have the same numbers. */
static void put_output(struct answering *call, const char *output)
{
    int place = output[0] - '0';
    char *base = (char *)call->arguments[place];
    const char *members = output + 2;
    int first = call->member;
    call->member += numbers_of(members);
    if (!base)
        return;
    if (members[0] == 's' && !isdigit((unsigned char)members[1])) {
        size_t size = (unsigned)call->arguments[place + 1];
        if (call->lie->parts & LIE_ZERO)
            memset(base, 0, size);
        else if (call->lie->parts & LIE_TEXT)
            put_text(base, size, call->lie->text);
    } else if (members[0] == 'F') {
        for (int i = 0; i < (int)call->arguments[place - 1]; i++)
            put_field(call->lie, (nvmlFieldValue_t *)base + i);
    } else if (members[0] == '*') {
        for (unsigned i = 0; i < call->room; i++)
            base += put_members(call->lie, first, members + 1, base, SIZE_MAX);
    } else {
        unsigned version;
        memcpy(&version, base, sizeof version);
        put_members(call->lie, first, members, base, members[0] == 'v' ? version & 0xffffff : SIZE_MAX);
    }
}

static nvmlReturn_t with_lie(struct lie *lie, const struct call *call, const word *arguments, unsigned room,
                             nvmlReturn_t result)
{
    struct answering answering = {.lie = lie, .arguments = arguments, .room = room};
    bool answers = lie->parts & ~(LIE_CODE | LIE_TYPE);
    for (const char *output = call->answer; *output; output += strspn(output, " ")) {
        if (answers || lie->field >= 0 || (lie->parts & LIE_TYPE))
            put_output(&answering, output);
        output += strcspn(output, " ");
    }
    if (lie->field >= 0)
        return result;
    if (lie->parts & LIE_CODE)
        return (nvmlReturn_t)lie->code;
    return answers && result != NVML_ERROR_INSUFFICIENT_SIZE ? NVML_SUCCESS : result;
}

static int slot_of_call(struct state *state, const char *call, const word *arguments)
{
    if (strncmp(call, "nvmlDeviceGetHandleByIndex", 26) == 0)
        return slot_of_index(state, (unsigned)arguments[0]);
    return slot_of_handle(arguments[0]);
}

/* The place of the argument that says how many records fit, or -1. */
static int place_of_room(const char *answer)
{
    const char *records = strchr(answer, '*'), *count = strrchr(answer, ' ');
    return records && count ? count[1] - '0' : -1;
}

static void note(struct state *state, int place, const struct call *call, const word *arguments)
{
    state->called[place]++;
    if (!strchr(call->answer, 'F'))
        return;
    const nvmlFieldValue_t *fields = (const nvmlFieldValue_t *)arguments[2];
    for (int i = 0; fields && i < (int)arguments[1]; i++)
        if (fields[i].fieldId < MAX_FIELDS)
            state->field_asked[fields[i].fieldId]++;
}

static nvmlReturn_t answer(int place, function *truth, word *arguments)
{
    const struct call *call = &calls[place];
    struct state *state = node_state();
    if (state)
        note(state, place, call, arguments);
    if (!state || !state->lies_in_use)
        return truth(arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);

    int slot = slot_of_call(state, call->name, arguments), room_at = place_of_room(call->answer);
    unsigned room = room_at >= 0 && arguments[room_at] ? *(unsigned *)arguments[room_at] : 0;
    struct lie *told[MAX_LIES];
    int lies = 0;
    for (int i = 0; i < MAX_LIES; i++)
        if (lie_applies(&state->lie[i], call->name, slot, arguments))
            told[lies++] = &state->lie[i];
    /* A code alone stands for the whole call: nothing is done, and nothing is written. */
    for (int i = 0; i < lies; i++)
        if (told[i]->parts == LIE_CODE && told[i]->field < 0)
            return (nvmlReturn_t)told[i]->code;
    nvmlReturn_t result =
        truth(arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
    for (int i = 0; i < lies; i++)
        result = with_lie(told[i], call, arguments, room, result);
    return result;
}

enum {
#define CALL(name, answer) PLACE_##name,
#include "calls.h"
#undef CALL
};

#define CALL(name, description)                                      \
    function answer_##name;                                          \
    NVML_API function name;                                          \
    nvmlReturn_t name(word a, word b, word c, word d, word e, word f) \
    {                                                                \
        word arguments[ARGUMENTS] = {a, b, c, d, e, f};              \
        return answer(PLACE_##name, answer_##name, arguments);       \
    }
#include "calls.h"
#undef CALL

/* For tests that change a lie between two calls of their own process: as the command does, 0 when it is added. */
NVML_API int nvmlsimLie(int count, char **words)
{
    char error[256];
    struct state *state = node_state();
    return state && lie_add(state, count, words, error, sizeof error) ? 0 : -1;
}

NVML_API void nvmlsimTruth(void)
{
    struct state *state = node_state();
    if (state)
        lies_end(state, NULL);
}
