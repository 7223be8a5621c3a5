/*
 * A disk that is full for one process, for as long as a file exists: preloaded into the broker's JVM, it changes what
 * statvfs64(3) tells it. The broker's own watch over its disk and its own refusal are what is tested.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/statvfs.h>
#include <unistd.h>

int statvfs64(const char *path, struct statvfs64 *disk)
{
    int (*real)(const char *, struct statvfs64 *) =
        (int (*)(const char *, struct statvfs64 *))dlsym(RTLD_NEXT, "statvfs64");
    const char *flag = getenv("CHAOS_DISK_FULL_WHILE");
    int result = real(path, disk);

    if (result == 0 && flag != NULL && access(flag, F_OK) == 0)
        disk->f_bfree = disk->f_bavail = disk->f_blocks / 100;
    return result;
}
