/* Loaded into a Redis server before its libraries: it gets its time from here, ahead by as many seconds as the file CLOCK says. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int file = -1;
    char ahead[24] = {0};
    struct timespec real;
    (void)zone;
    if (file == -1) file = open(getenv("CLOCK"), O_RDONLY);
    if (file == -1 || pread(file, ahead, sizeof ahead - 1, 0) < 0) abort();
    if (syscall(SYS_clock_gettime, CLOCK_REALTIME, &real) != 0) abort();
    now->tv_sec = real.tv_sec + atol(ahead);
    now->tv_usec = real.tv_nsec / 1000;
    return 0;
}
