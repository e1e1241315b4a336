/* Quotas of control groups, from files as the kernel shows them. */
#define _GNU_SOURCE
#include "base/quota.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "support.h"

static char root[64];

/* Makes the file, and the folders that it is in, below the root. */
static void write_file(const char *path, const char *text)
{
    char whole[512];
    snprintf(whole, sizeof whole, "%s%s", root, path);
    for (char *at = strchr(whole + strlen(root) + 1, '/'); at; at = strchr(at + 1, '/')) {
        *at = '\0';
        mkdir(whole, 0700);
        *at = '/';
    }
    FILE *file = fopen(whole, "w");
    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

/* A root of its own for each test. */
static void begin(const char *groups)
{
    strcpy(root, "/tmp/fastlstm-quota-XXXXXX");
    CHECK(mkdtemp(root) != NULL);
    if (groups)
        write_file("/proc/self/cgroup", groups);
}
static void end(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    CHECK(system(command) == 0);
}

static void test_none(void)
{
    begin(NULL);
    CHECK_EQUAL(fl_quota_cpus(root), INT_MAX);
    write_file("/sys/fs/cgroup/cpu.max", "max 100000\n");
    CHECK_EQUAL(fl_quota_cpus(root), INT_MAX);
    write_file("/proc/self/cgroup", "0::/\n");
    CHECK_EQUAL(fl_quota_cpus(root), INT_MAX);
    end();
}

/* A container that sees its own group as the top; so it was before there were namespaces. */
static void test_top(void)
{
    begin("0::/\n");
    write_file("/sys/fs/cgroup/cpu.max", "350000 100000\n");
    CHECK_EQUAL(fl_quota_cpus(root), 3);
    write_file("/sys/fs/cgroup/cpu.max", "50000 100000\n");
    CHECK_EQUAL(fl_quota_cpus(root), 1);
    write_file("/proc/self/cgroup", "0::/docker/0123456789abcdef\n");
    CHECK_EQUAL(fl_quota_cpus(root), 1);
    end();
    begin(NULL);
    write_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n");
    CHECK_EQUAL(fl_quota_cpus(root), INT_MAX); /* of no period */
    write_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    CHECK_EQUAL(fl_quota_cpus(root), 2);
    write_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    CHECK_EQUAL(fl_quota_cpus(root), INT_MAX);
    end();
}

/* A group of version 2 that has the name of version 1's hierarchy, and is not ours. */
static void test_group_named_cpu(void)
{
    begin("0::/system.slice\n");
    write_file("/sys/fs/cgroup/cpu/cpu.max", "100000 100000\n");
    CHECK_EQUAL(fl_quota_cpus(root), INT_MAX);
    write_file("/proc/self/cgroup", "0::/cpu/jobs\n");
    CHECK_EQUAL(fl_quota_cpus(root), 1);
    end();
}

/* A service: the smallest quota on the way up counts. */
static void test_service(void)
{
    begin("0::/system.slice/predictor.service\n");
    write_file("/sys/fs/cgroup/system.slice/predictor.service/cpu.max", "400000 100000\n");
    CHECK_EQUAL(fl_quota_cpus(root), 4);
    write_file("/sys/fs/cgroup/system.slice/cpu.max", "250000 100000\n");
    CHECK_EQUAL(fl_quota_cpus(root), 2);
    write_file("/sys/fs/cgroup/system.slice/other.service/cpu.max", "100000 100000\n");
    CHECK_EQUAL(fl_quota_cpus(root), 2);
    end();
}

static void test_version_1(void)
{
    begin("12:cpuset:/jobs\n5:cpu,cpuacct:/jobs/7\n1:name=systemd:/jobs\n");
    write_file("/sys/fs/cgroup/cpu/jobs/7/cpu.cfs_quota_us", "600000\n");
    write_file("/sys/fs/cgroup/cpu/jobs/7/cpu.cfs_period_us", "100000\n");
    CHECK_EQUAL(fl_quota_cpus(root), 6);
    write_file("/proc/self/cgroup", "4:cpuacct:/jobs/7\n");
    CHECK_EQUAL(fl_quota_cpus(root), INT_MAX);
    write_file("/proc/self/cgroup", "4:cpuacct,cpu:/jobs/7\n");
    CHECK_EQUAL(fl_quota_cpus(root), 6);
    end();
}

static void test_nonsense(void)
{
    static char longest[5000];
    memset(longest, 'a', sizeof longest - 1);
    memcpy(longest, "0::/", 4);
    const char *const groups[] = {"", "\n\n", "0", "0:", "0::", ":::", "0::relative\n", longest};
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        begin(groups[i]);
        write_file("/sys/fs/cgroup/cpu.max", "what\n");
        CHECK_EQUAL(fl_quota_cpus(root), INT_MAX);
        write_file("/sys/fs/cgroup/cpu.max", "99999999999999999999 1\n");
        CHECK(fl_quota_cpus(root) >= 1);
        write_file("/sys/fs/cgroup/cpu.max", "200000 100000\n");
        CHECK_EQUAL(fl_quota_cpus(root), 2);
        end();
    }
}

int main(void)
{
    test_none();
    test_top();
    test_group_named_cpu();
    test_service();
    test_version_1();
    test_nonsense();
    return check_report();
}
