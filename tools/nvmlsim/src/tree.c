/*
 * The node's files. Each is written to a temporary file and renamed, and only when it has to change, so that a
 * reader never sees half a file and a change of the state costs little.
 */
#define _GNU_SOURCE
#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TEXT = 4096 };
#define GPU_DRIVERS "../../../../bus/pci/drivers" /* from a GPU's folder */

static char root[PATH_MAX];
static bool failed;

static void path_below(char path[PATH_MAX], const char *format, va_list arguments)
{
    int length = snprintf(path, PATH_MAX, "%s/", root);
    vsnprintf(path + length, PATH_MAX - (size_t)length, format, arguments);
}

static void make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(path, 0777);
        *slash = '/';
    }
}

static bool holds(const char *path, const char *text)
{
    char present[TEXT];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t length = read(fd, present, sizeof present);
    close(fd);
    return length == (ssize_t)strlen(text) && memcmp(present, text, (size_t)length) == 0;
}

/* Make the file below the root hold the text. */
__attribute__((format(printf, 2, 3))) static void put(const char *text, const char *format, ...)
{
    char path[PATH_MAX], temporary[PATH_MAX + 16];
    va_list arguments;
    va_start(arguments, format);
    path_below(path, format, arguments);
    va_end(arguments);
    if (holds(path, text))
        return;
    make_folders(path);
    snprintf(temporary, sizeof temporary, "%s/.new", root);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    size_t length = strlen(text);
    bool written = fd >= 0 && write(fd, text, length) == (ssize_t)length;
    if (fd >= 0)
        close(fd);
    if (!written || rename(temporary, path) < 0)
        failed = true;
}

static void put_line(const char *folder, const char *file, const char *format, ...)
{
    char text[TEXT];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text - 1, format, arguments);
    va_end(arguments);
    strcpy(text + length, "\n");
    put(text, "%s/%s", folder, file);
}

static void put_link(const char *target, const char *format, ...)
{
    char path[PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    path_below(path, format, arguments);
    va_end(arguments);
    char present[PATH_MAX];
    ssize_t length = readlink(path, present, sizeof present);
    if (length == (ssize_t)strlen(target) && memcmp(present, target, (size_t)length) == 0)
        return;
    make_folders(path);
    if ((length >= 0 && unlink(path) < 0) || symlink(target, path) < 0)
        failed = true;
}

static int remove_entry(const char *path, const struct stat *stat, int type, struct FTW *walk)
{
    (void)stat, (void)type, (void)walk;
    return remove(path);
}

/* Remove a file, or a folder with all in it. */
__attribute__((format(printf, 1, 2))) static void drop(const char *format, ...)
{
    char path[PATH_MAX];
    va_list arguments;
    va_start(arguments, format);
    path_below(path, format, arguments);
    va_end(arguments);
    if (nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS) < 0 && errno != ENOENT)
        failed = true;
}

static const char *link_speed(int64_t generation)
{
    static const char *const speeds[] = {
        "Unknown",       "2.5 GT/s PCIe", "5.0 GT/s PCIe", "8.0 GT/s PCIe",
        "16.0 GT/s PCIe", "32.0 GT/s PCIe", "64.0 GT/s PCIe",
    };
    return speeds[generation > 0 && generation < 7 ? generation : 0];
}

static void put_aer(const char *folder, const char *file, const char *const *names, value *counts, int number,
                    const char *total_name)
{
    char text[TEXT];
    size_t length = 0;
    unsigned long long total = 0;
    for (int i = 0; i < number; i++) {
        unsigned long long count = counts ? (unsigned long long)counts[i] : 0;
        length += (size_t)snprintf(text + length, sizeof text - length, "%s %llu\n", names[i], count);
        total += count;
    }
    snprintf(text + length, sizeof text - length, "%s %llu\n", total_name, total);
    put(text, "%s/%s", folder, file);
}

/* The AER files of a port, of which only the totals count. */
static void put_port_aer(const char *folder, struct gpu *gpu)
{
    put_line(folder, "aer_dev_correctable", "BadTLP %lld\nTOTAL_ERR_COR %lld", (long long)gpu->port.correctable,
             (long long)gpu->port.correctable);
    put_line(folder, "aer_dev_nonfatal", "CmpltTO %lld\nTOTAL_ERR_NONFATAL %lld", (long long)gpu->port.nonfatal,
             (long long)gpu->port.nonfatal);
    put_line(folder, "aer_dev_fatal", "SDES %lld\nTOTAL_ERR_FATAL %lld", (long long)gpu->port.fatal,
             (long long)gpu->port.fatal);
}

/* The AER files of a function; NULL: one that has had no error. */
static void put_aer_files(const char *folder, struct gpu *gpu)
{
    put_aer(folder, "aer_dev_correctable", aer_correctable_names, gpu ? gpu->aer.correctable : NULL, AER_CORRECTABLE,
            "TOTAL_ERR_COR");
    put_aer(folder, "aer_dev_nonfatal", aer_uncorrectable_names, gpu ? gpu->aer.nonfatal : NULL, AER_UNCORRECTABLE,
            "TOTAL_ERR_NONFATAL");
    put_aer(folder, "aer_dev_fatal", aer_uncorrectable_names, gpu ? gpu->aer.fatal : NULL, AER_UNCORRECTABLE,
            "TOTAL_ERR_FATAL");
}

/* `drivers` is the folder of drivers, as seen from that of the function. */
static void put_driver_link(const char *address, const char *driver, const char *drivers)
{
    char target[PATH_MAX];
    snprintf(target, sizeof target, "%s/%s", drivers, driver);
    put_link(target, "sys/bus/pci/devices/%s/driver", address);
    snprintf(target, sizeof target, "../../devices/%s", address);
    put_link(target, "sys/bus/pci/drivers/%s/%s", driver, address);
}

/* A GPU is below a root port of its own, on the bus before its own, as the kernel shows it. */
struct place {
    char address[32];
    char port[32];
    char port_folder[96];
    char folder[160];
};

static struct place place_of(struct gpu *gpu)
{
    struct place place;
    unsigned domain = (unsigned)gpu->pci.domain & 0xffff, bus = (unsigned)gpu->pci.bus & 0xff, above = (bus - 1) & 0xff;
    snprintf(place.address, sizeof place.address, "%04x:%02x:%02x.0", domain, bus, (unsigned)gpu->pci.device & 0x1f);
    snprintf(place.port, sizeof place.port, "%04x:%02x:01.0", domain, above);
    snprintf(place.port_folder, sizeof place.port_folder, "devices/pci%04x:%02x/%s", domain, above, place.port);
    snprintf(place.folder, sizeof place.folder, "%s/%s", place.port_folder, place.address);
    return place;
}

static void put_function_link(const char *address, const char *folder)
{
    char target[256];
    snprintf(target, sizeof target, "../../../%s", folder);
    put_link(target, "sys/bus/pci/devices/%s", address);
}

static void put_port(struct gpu *gpu, const struct place *place)
{
    char folder[128];
    snprintf(folder, sizeof folder, "sys/%s", place->port_folder);
    put_line(folder, "class", "0x060400");
    put_line(folder, "vendor", "0x8086");
    put_line(folder, "device", "0x352a");
    put_port_aer(folder, gpu);
    put_function_link(place->port, place->port_folder);
}

static void put_gpu_function(struct gpu *gpu, const struct place *place)
{
    char folder[192];
    snprintf(folder, sizeof folder, "sys/%s", place->folder);
    put_line(folder, "class", "0x030200");
    put_line(folder, "vendor", "0x%04x", (unsigned)gpu->pci.device_id & 0xffff);
    put_line(folder, "device", "0x%04x", (unsigned)(gpu->pci.device_id >> 16) & 0xffff);
    put_line(folder, "subsystem_vendor", "0x%04x", (unsigned)gpu->pci.subsystem_id & 0xffff);
    put_line(folder, "subsystem_device", "0x%04x", (unsigned)(gpu->pci.subsystem_id >> 16) & 0xffff);
    put_line(folder, "numa_node", "%d", (int)gpu->numa_node);
    put_line(folder, "max_link_speed", "%s", link_speed(gpu->pcie.device_max_generation));
    put_line(folder, "max_link_width", "%d", (int)gpu->pcie.max_width);
    /* The registers of a GPU that fell off the bus read as all ones. */
    put_line(folder, "current_link_speed", "%s", link_speed(gpu->lost ? 0 : pcie_generation_now(gpu)));
    put_line(folder, "current_link_width", "%d", gpu->lost ? 63 : (int)gpu->pcie.width);
    put_aer_files(folder, gpu);
    put_function_link(place->address, place->folder);
}

static void put_gpu_information(struct node *node, struct gpu *gpu, int slot, const char *address)
{
    char text[TEXT];
    snprintf(text, sizeof text,
             "Model: \t\t %s\n"
             "IRQ:   \t\t %d\n"
             "GPU UUID: \t %s\n"
             "Video BIOS: \t %s\n"
             "Bus Type: \t PCIe\n"
             "DMA Size: \t 52 bits\n"
             "DMA Mask: \t 0xfffffffffffff\n"
             "Bus Location: \t %s\n"
             "Device Minor: \t %d\n"
             "GPU Firmware: \t %s\n"
             "GPU Excluded:\t No\n",
             gpu->name, 64 + slot, gpu->uuid, gpu->vbios, address, slot, node->driver_version);
    put(text, "proc/driver/nvidia/gpus/%s/information", address);
}

static void update_gpu(struct state *state, int slot)
{
    struct gpu *gpu = &state->gpu[slot];
    struct place place = place_of(gpu);
    const char *address = place.address;
    if (gpu->device_node)
        put("", "dev/nvidia%d", slot);
    else
        drop("dev/nvidia%d", slot);
    if (gpu->on_bus) {
        put_port(gpu, &place);
        put_gpu_function(gpu, &place);
    } else {
        drop("sys/bus/pci/devices/%s", address);
        drop("sys/%s", place.folder);
    }
    bool in_use = gpu->on_bus && gpu->present, handed_over = gpu->on_bus && gpu->handed_over;
    if (in_use) {
        put_driver_link(address, "nvidia", GPU_DRIVERS);
        put_gpu_information(&state->node, gpu, slot, address);
    } else {
        drop("sys/bus/pci/drivers/nvidia/%s", address);
        drop("proc/driver/nvidia/gpus/%s", address);
    }
    if (handed_over)
        put_driver_link(address, "vfio-pci", GPU_DRIVERS);
    else
        drop("sys/bus/pci/drivers/vfio-pci/%s", address);
    if (gpu->on_bus && !in_use && !handed_over)
        drop("sys/bus/pci/devices/%s/driver", address);
}

static void put_switch(struct node *node, int number)
{
    struct nvswitch *nvswitch = &node->nvswitch[number];
    char address[32], folder[64];
    snprintf(address, sizeof address, "%04x:%02x:%02x.0", (unsigned)nvswitch->domain & 0xffff,
             (unsigned)nvswitch->bus & 0xff, (unsigned)nvswitch->device & 0x1f);
    snprintf(folder, sizeof folder, "sys/bus/pci/devices/%s", address);
    put_line(folder, "class", "0x068000");
    put_line(folder, "vendor", "0x10de");
    put_line(folder, "device", "0x%04x", (unsigned)node->switch_device_id & 0xffff);
    put_line(folder, "numa_node", "0");
    put_line(folder, "max_link_speed", "%s", link_speed(4));
    put_line(folder, "max_link_width", "2");
    put_line(folder, "current_link_speed", "%s", link_speed(4));
    put_line(folder, "current_link_width", "2");
    put_aer_files(folder, NULL);
    put_driver_link(address, "nvidia-nvswitch", "../../drivers");
    put("", "dev/nvidia-nvswitch%d", number);
}

/* No kernel module: node.driver_version is empty, or nvmlInit says so. */
static bool module_is_absent(struct state *state)
{
    if (state->node.driver_version[0] == '\0')
        return true;
    for (int i = 0; i < MAX_RULES; i++) {
        struct rule *rule = &state->rule[i];
        if (rule->kind == RULE_ERROR && strcmp(rule->call, "nvmlInit") == 0 && rule->code == NVML_ERROR_DRIVER_NOT_LOADED)
            return true;
    }
    return false;
}

bool tree_update(struct state *state)
{
    struct node *node = &state->node;
    if (node->tree[0] == '\0')
        return true;
    snprintf(root, sizeof root, "%s", node->tree);
    failed = false;
    put("", "dev/nvidiactl");
    put("", "dev/nvidia-uvm");
    for (int slot = 0; slot < node->gpus; slot++)
        update_gpu(state, slot);
    for (int i = 0; node->switch_device_id && i < node->switches; i++)
        put_switch(node, i);
    put("", "sys/module/kernel/uevent"); /* the folder of modules is there without ours */
    if (module_is_absent(state)) {
        drop("sys/module/nvidia");
        drop("proc/driver/nvidia/version");
        return !failed;
    }
    put_line("sys/module/nvidia", "version", "%s", node->driver_version);
    char text[TEXT];
    snprintf(text, sizeof text,
             "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  %s  Release Build  (nvmlsim)\n"
             "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
             node->driver_version);
    put(text, "proc/driver/nvidia/version");
    return !failed;
}

/* Files are only removed below a folder that was empty at first, so that no mistake costs the real /dev. */
#define MARK ".nvmlsim"

static bool empty_folder(const char *path)
{
    struct dirent **entries;
    int count = scandir(path, &entries, NULL, NULL);
    for (int i = 0; i < count; i++)
        free(entries[i]);
    if (count >= 0)
        free(entries);
    return count == 2; /* . and .. */
}

static bool holds_mark(const char *path)
{
    char mark[PATH_MAX + sizeof MARK];
    snprintf(mark, sizeof mark, "%s/" MARK, path);
    return access(mark, F_OK) == 0;
}

bool tree_choose(struct state *state, const char *chosen)
{
    char resolved[PATH_MAX];
    if (mkdir(chosen, 0777) < 0 && errno != EEXIST)
        return false;
    if (!realpath(chosen, resolved))
        return false;
    if (strlen(resolved) >= sizeof state->node.tree) {
        errno = ENAMETOOLONG;
        return false;
    }
    if (strcmp(state->node.tree, resolved) == 0)
        return true;
    snprintf(root, sizeof root, "%s", resolved);
    if (!empty_folder(resolved) && !holds_mark(resolved)) {
        errno = ENOTEMPTY;
        return false;
    }
    /* What another node left here goes. */
    drop("dev");
    drop("sys");
    drop("proc");
    put("", MARK);
    strcpy(state->node.tree, resolved);
    return true;
}
