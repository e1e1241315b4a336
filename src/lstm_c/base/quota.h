/* What control groups (containers, systemd's CPUQuota=) let this process have of the processors. */
#ifndef FL_BASE_QUOTA_H
#define FL_BASE_QUOTA_H

/* Whole CPUs that the smallest quota pays for, at least 1, INT_MAX without one: of the process's
 * group and of all that it lies in, version 1 or 2. `root`: "", or where a test has the files. */
int fl_quota_cpus(const char *root);

#endif
