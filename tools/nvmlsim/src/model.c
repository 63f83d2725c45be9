/* GPU models are data: every line of a model file is the name of a value and what it is on a healthy, idle GPU. */
#define _GNU_SOURCE
#include "model.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "names.h"

/* What a model says about the machine around the GPUs. */
struct machine {
    char driver[80];
    char buses[128];
    int switches;
    int64_t switch_device_id;
    bool multi_node;
};

static bool fail(char *error, size_t size, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error, size, format, arguments);
    va_end(arguments);
    return false;
}

/* The models are next to the build folder: tools/nvmlsim/build/nvmlsim, tools/nvmlsim/models. */
static void models_folder(char path[PATH_MAX])
{
    ssize_t length = readlink("/proc/self/exe", path, PATH_MAX - 32);
    path[length < 0 ? 0 : length] = '\0';
    for (int up = 0; up < 2; up++) {
        char *slash = strrchr(path, '/');
        if (slash)
            *slash = '\0';
    }
    strcat(path, "/models");
}

void model_list(void)
{
    char folder[PATH_MAX];
    models_folder(folder);
    struct dirent **files;
    int count = scandir(folder, &files, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char *suffix = strstr(files[i]->d_name, ".model");
        if (suffix)
            printf("%.*s\n", (int)(suffix - files[i]->d_name), files[i]->d_name);
        free(files[i]);
    }
    if (count >= 0)
        free(files);
}

static char *trim(char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    for (char *end = text + strlen(text); end > text && isspace((unsigned char)end[-1]); *--end = '\0')
        ;
    return text;
}

struct assignment {
    const char *text;
    bool ok;
};

static void assign(const struct named_value *found, void *context)
{
    struct assignment *assignment = context;
    assignment->ok = named_value_set(found, assignment->text);
}

static bool model_line(struct gpu *gpu, struct machine *machine, const char *key, const char *text)
{
    int64_t number = 0;
    if (strcmp(key, "driver") == 0)
        return snprintf(machine->driver, sizeof machine->driver, "%s", text) < (int)sizeof machine->driver;
    if (strcmp(key, "buses") == 0)
        return snprintf(machine->buses, sizeof machine->buses, "%s", text) < (int)sizeof machine->buses;
    if (strcmp(key, "switches") == 0) {
        bool ok = number_parse(text, &number) && number >= 0 && number <= MAX_SWITCHES;
        machine->switches = (int)number;
        return ok;
    }
    if (strcmp(key, "multi_node") == 0) {
        bool ok = number_parse(text, &number) && (number == 0 || number == 1);
        machine->multi_node = number == 1;
        return ok;
    }
    if (strcmp(key, "switch_device_id") == 0)
        return number_parse(text, &machine->switch_device_id);
    struct assignment assignment = {text, false};
    return names_find_in_gpu(gpu, key, assign, &assignment) > 0 && assignment.ok;
}

static bool model_read(const char *model, struct gpu *gpu, struct machine *machine, char *error, size_t size)
{
    char path[PATH_MAX + 64];
    if (strchr(model, '/')) {
        snprintf(path, sizeof path, "%s", model);
    } else {
        char folder[PATH_MAX];
        models_folder(folder);
        snprintf(path, sizeof path, "%s/%.48s.model", folder, model);
    }
    FILE *file = fopen(path, "r");
    if (!file)
        return fail(error, size, "no model %s: %s", model, strerror(errno));
    char line[512];
    bool ok = true;
    for (int number = 1; ok && fgets(line, sizeof line, file); number++) {
        char *key = trim(line);
        if (*key == '\0' || *key == '#')
            continue;
        char *text = strchr(key, '=');
        if (text)
            *text++ = '\0';
        if (!text || !model_line(gpu, machine, trim(key), trim(text)))
            ok = fail(error, size, "%s:%d: no such value, or not one of its kind: %s", path, number, key);
    }
    fclose(file);
    return ok;
}

/* Well-mixed numbers from a seed (splitmix64): the same request builds the same node. */
static uint64_t draw(uint64_t *seed)
{
    uint64_t mixed = *seed += 0x9e3779b97f4a7c15;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
    return mixed ^ mixed >> 31;
}

static void draw_uuid(char *text, size_t size, const char *prefix, uint64_t *seed)
{
    uint64_t high = draw(seed), low = draw(seed);
    snprintf(text, size, "%s%08x-%04x-%04x-%04x-%012llx", prefix, (unsigned)(high >> 32),
             (unsigned)(high >> 16 & 0xffff), (unsigned)(high & 0xffff), (unsigned)(low >> 48),
             (unsigned long long)(low & 0xffffffffffff));
}

/* What old drivers do not know, whatever the GPU can do. */
static void limit_to_driver(struct gpu *gpu, int major)
{
    if (major < 535)
        gpu->supports.margin_temperature = gpu->supports.power_average = 0;
    if (major < 550)
        gpu->supports.recovery_action = gpu->supports.sram_ecc_status = gpu->supports.throttle_time = 0;
    if (major < 570)
        gpu->supports.repair_status = gpu->supports.nvlink_counters = gpu->supports.platform = 0;
    if (major < 575)
        gpu->supports.unrepairable_memory = gpu->supports.bank_remap = 0;
}

static int cuda_version(int driver_major)
{
    static const struct {
        int driver, cuda;
    } releases[] = {{580, 13000}, {575, 12090}, {570, 12080}, {560, 12060}, {550, 12040},
                    {545, 12030}, {535, 12020}, {525, 12000}, {510, 11060}, {470, 11040}};
    for (size_t i = 0; i < sizeof releases / sizeof *releases; i++)
        if (driver_major >= releases[i].driver)
            return releases[i].cuda;
    return 11000;
}

void model_set_mig(struct gpu *gpu, int devices)
{
    gpu->mig.mode = gpu->mig.pending = devices > 0;
    for (int i = 0; i < MAX_MIG_DEVICES; i++) {
        struct mig_device *mig = &gpu->mig_device[i];
        mig->present = i < devices;
        mig->gpu_instance = 7 + i; /* the driver numbers 1g instances from 7 */
        mig->compute_instance = 0;
        mig->slices = 1;
        mig->memory = gpu->memory.total / 8;
        mig->multiprocessors = gpu->cores / 128 / 8;
    }
}

/* With switches every link goes to one of them, in turn; without, the links go round to the other GPUs. */
static void wire_links(struct gpu *gpu, int slot, int gpus, int switches)
{
    for (int i = 0; i < gpu->nvlink.links; i++) {
        struct link *link = &gpu->link[i];
        link->remote_type = switches ? 2 : 0;
        link->remote_device = switches ? i % switches : gpus > 1 ? (slot + 1 + i % (gpus - 1)) % gpus : slot;
        link->remote_link = switches ? slot * (int)gpu->nvlink.links / switches + i / switches : i;
        link->state = switches || gpus > 1;
    }
}

static bool place_gpu(struct gpu *gpu, int slot, int gpus, char **bus, uint64_t *seed)
{
    char *stop;
    gpu->present = gpu->on_bus = gpu->device_node = 1;
    gpu->pci.bus = strtol(*bus, &stop, 16);
    if (stop == *bus)
        return false;
    *bus = stop;
    gpu->module_id = slot + 1;
    gpu->board_id = gpu->pci.bus << 8;
    gpu->numa_node = slot >= (gpus + 1) / 2;
    gpu->platform.slot = slot + 1;
    draw_uuid(gpu->uuid, sizeof gpu->uuid, "GPU-", seed);
    snprintf(gpu->serial, sizeof gpu->serial, "165%010llu", (unsigned long long)(draw(seed) % 10000000000));
    gpu->energy = (int64_t)(draw(seed) % 1000000000);
    gpu->settled_at = monotonic_ns();
    return true;
}

bool model_build(struct state *state, const struct node_request *request, char *error, size_t size)
{
    struct gpu *model = &state->healthy[0];
    struct machine machine = {.driver = "550.90.07", .buses = "17 31 4b 65 9b b1 ca e3"};
    if (request->gpus < 0 || request->gpus > MAX_GPUS)
        return fail(error, size, "a node has 0 to %d GPUs", MAX_GPUS);
    if (!model_read(request->model, model, &machine, error, size))
        return false;
    if (request->mig_devices > model->mig.max_devices)
        return fail(error, size, "a %s has at most %d MIG devices", model->name, (int)model->mig.max_devices);

    struct node *node = &state->node;
    snprintf(node->driver_version, sizeof node->driver_version, "%s",
             request->driver ? request->driver : machine.driver);
    int major = atoi(node->driver_version);
    node->cuda_version = cuda_version(major);
    snprintf(node->nvml_version, sizeof node->nvml_version, "%d.%.70s", (int)node->cuda_version / 1000,
             node->driver_version);
    node->gpus = request->gpus;
    uint64_t seed = request->seed;
    draw_uuid(node->cluster_uuid, sizeof node->cluster_uuid, "", &seed);
    if (!machine.multi_node) /* a fabric within the node has no uuid */
        strcpy(node->cluster_uuid, "00000000-0000-0000-0000-000000000000");
    snprintf(node->chassis_serial, sizeof node->chassis_serial, "182%010llu",
             (unsigned long long)(draw(&seed) % 10000000000));
    node->switches = machine.switches;
    node->switch_device_id = machine.switch_device_id;
    for (int i = 0; i < machine.switches; i++)
        node->nvswitch[i].bus = 0xe5 + i; /* no model has a GPU there */

    limit_to_driver(model, major);
    model_set_mig(model, request->mig_devices);
    char *bus = machine.buses;
    for (int slot = 0; slot < request->gpus; slot++) {
        struct gpu *gpu = &state->gpu[slot];
        memcpy(gpu, model, sizeof *gpu);
        if (!place_gpu(gpu, slot, request->gpus, &bus, &seed))
            return fail(error, size, "model %s has PCI buses for %d GPUs", request->model, slot);
        wire_links(gpu, slot, request->gpus, machine.switches);
    }
    memcpy(state->healthy, state->gpu, sizeof state->healthy);
    state->version = STATE_VERSION;
    state->size = sizeof *state;
    state->magic = STATE_MAGIC;
    return true;
}
