#define _GNU_SOURCE
#include "base/quota.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, FILE_BYTES = 4096 };

/* First bytes of a file as a string; 0 if it cannot be read. */
static int read_file(const char *folder, const char *name, char *text, size_t size)
{
    char path[PATH_BYTES];
    int length = snprintf(path, sizeof path, "%s/%s", folder, name);
    int file = length < PATH_BYTES ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return 0;
    ssize_t got = read(file, text, size - 1);
    close(file);
    text[got > 0 ? got : 0] = '\0';
    return got > 0;
}

/* Of one group; "max", and -1 in version 1, are no quota. */
static int group_cpus(const char *group)
{
    char text[64], *end = text;
    long long quota = 0, period = 0;
    if (read_file(group, "cpu.max", text, sizeof text)) {
        quota = strtoll(text, &end, 10);
        period = strtoll(end, NULL, 10);
    } else if (read_file(group, "cpu.cfs_quota_us", text, sizeof text)) {
        quota = strtoll(text, NULL, 10);
        if (read_file(group, "cpu.cfs_period_us", text, sizeof text))
            period = strtoll(text, NULL, 10);
    }
    if (quota <= 0 || period <= 0)
        return INT_MAX;
    long long whole = quota / period;
    return whole < 1 ? 1 : whole < INT_MAX ? (int)whole : INT_MAX;
}

/* Of the group at `path` below `mount`, and of those above it. A container may see neither its own
 * place in the hierarchy nor what lies above it: then the top of what it sees is its group. */
static int hierarchy_cpus(const char *root, const char *mount, const char *path)
{
    char group[PATH_BYTES];
    size_t top = strlen(root) + strlen(mount);
    int length = snprintf(group, sizeof group, "%s%s%s", root, mount, path), least = INT_MAX;
    if (length < 0 || length >= PATH_BYTES)
        return least;
    for (;;) {
        int found = group_cpus(group);
        least = found < least ? found : least;
        char *cut = strrchr(group + top, '/');
        if (!cut)
            return least;
        *cut = '\0';
    }
}

static int names_cpu(const char *controllers)
{
    for (const char *at = controllers; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, "cpu", 3) == 0 && (at[3] == '\0' || at[3] == ','))
            return 1;
    }
    return 0;
}

int fl_quota_cpus(const char *root)
{
    static const char unified[] = "/sys/fs/cgroup", of_cpu[] = "/sys/fs/cgroup/cpu";
    char text[FILE_BYTES], folder[PATH_BYTES], *rest = NULL;
    int least = hierarchy_cpus(root, unified, ""), found;
    int length = snprintf(folder, sizeof folder, "%s/proc/self", root);
    if (length < 0 || length >= PATH_BYTES || !read_file(folder, "cgroup", text, sizeof text)) {
        found = hierarchy_cpus(root, of_cpu, "");
        return found < least ? found : least;
    }
    /* lines of number:controllers:path, the controllers of version 2 empty */
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char *controllers = strchr(line, ':'),
             *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = '\0';
        controllers++;
        if (*controllers && !names_cpu(controllers))
            continue;
        found = hierarchy_cpus(root, *controllers ? of_cpu : unified, path);
        least = found < least ? found : least;
    }
    return least;
}
