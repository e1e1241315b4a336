/* What a test program needs: checks that count, report where they failed and go on, and a check in
 * a child process for calls that might not return. main() ends with `return check_report();`. */
#ifndef FL_TESTS_CHECK_H
#define FL_TESTS_CHECK_H

#include <sys/types.h>

enum { CHECK_SKIPPED = 77 }; /* exit status that ctest counts as skipped */

void check_that(int holds, const char *text, const char *file, int line);
void check_equal(long long got, long long wanted, const char *text, const char *file, int line);
void check_at_most(double got, double limit, const char *text, const char *file, int line);
/* What is being tested, printed in front of a failure; printf's arguments. */
void check_context(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Prints the counts; 0 if no check failed. */
int check_report(void);
int check_failed(void);

/* fork(); the child is killed after half a minute. */
pid_t check_fork(void);
/* 1 if the child ended by itself with status 0. */
int check_joined(pid_t child);

#define CHECK(condition) check_that((condition) != 0, #condition, __FILE__, __LINE__)
#define CHECK_EQUAL(got, wanted)                                                                   \
    check_equal((long long)(got), (long long)(wanted), #got, __FILE__, __LINE__)
/* A NaN fails. */
#define CHECK_AT_MOST(got, limit) check_at_most((got), (limit), #got, __FILE__, __LINE__)

/* `condition` holds in a child process, which neither crashes nor hangs. */
#define CHECK_IN_CHILD(condition)                                                                  \
    do {                                                                                           \
        pid_t child_ = check_fork();                                                               \
        if (child_ == 0)                                                                           \
            _exit((condition) ? 0 : 1);                                                            \
        check_that(check_joined(child_), #condition, __FILE__, __LINE__);                          \
    } while (0)

#endif
