#include "check.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PRINTED_FAILURES = 25, CHILD_SECONDS = 30 };

static long long checks, failures;
static char context[256];

static int count_failure(const char *file, int line)
{
    failures++;
    if (failures > PRINTED_FAILURES)
        return 0;
    fprintf(stderr, "%s:%d: %s%s", file, line, context, context[0] ? ": " : "");
    return 1;
}

void check_that(int holds, const char *text, const char *file, int line)
{
    checks++;
    if (!holds && count_failure(file, line))
        fprintf(stderr, "%s does not hold\n", text);
}

void check_equal(long long got, long long wanted, const char *text, const char *file, int line)
{
    checks++;
    if (got != wanted && count_failure(file, line))
        fprintf(stderr, "%s is %lld, not %lld\n", text, got, wanted);
}

void check_at_most(double got, double limit, const char *text, const char *file, int line)
{
    checks++;
    if (!(got <= limit) && count_failure(file, line))
        fprintf(stderr, "%s is %g, more than %g\n", text, got, limit);
}

void check_context(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(context, sizeof context, format, arguments);
    va_end(arguments);
}

int check_failed(void)
{
    return failures != 0;
}

int check_report(void)
{
    printf("%lld checks, %lld failed\n", checks, failures);
    return failures != 0;
}

pid_t check_fork(void)
{
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        alarm(CHILD_SECONDS);
    return child;
}

int check_joined(pid_t child)
{
    int status;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
           WEXITSTATUS(status) == 0;
}
