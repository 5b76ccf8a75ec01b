/* Disturb the k-th input/output operation of a process and of all that it forks: preloaded, for tests only.

   FAULTS_CONTROL is a file that parent and child share: four 32-bit numbers, namely the action (0 none, 1 SIGKILL,
   2 ENOSPC, 3 EIO, 4 half of a write and then SIGKILL), the operation at which it happens, how many there were, and how
   many had the action; then a path. An operation counts when its path, or the file behind its descriptor, lies there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { NONE, KILL, FULL, BROKEN, TORN };
struct control { volatile int32_t action, at, count, hits; char root[1024]; };

static struct control *control;

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("FAULTS_CONTROL");
    if (!file) return;
    int handle = open(file, O_RDWR | O_CLOEXEC);
    if (handle < 0) return;
    void *shared = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, handle, 0);
    if (shared != MAP_FAILED) control = shared;
}

static int ours(const char *path) {
    char whole[PATH_MAX * 2];
    if (!control || !control->action || !path) return 0;
    if (path[0] != '/') {
        if (!getcwd(whole, PATH_MAX)) return 0;
        strncat(whole, "/", 2);
        strncat(whole, path, PATH_MAX - 2);
        path = whole;
    }
    size_t length = strlen(control->root);
    return strncmp(path, control->root, length) == 0 && (path[length] == '/' || !path[length]);
}

/* the path behind a descriptor, 0 where there is none */
static int path_of(int handle, char *path) {
    char link[64];
    if (!control || !control->action) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return 1;
}

static int ours_open(int handle) {
    char path[PATH_MAX];
    return path_of(handle, path) && ours(path);
}

static int ours_at(int folder, const char *path) {
    char whole[PATH_MAX * 2];
    if (folder == AT_FDCWD || !path || path[0] == '/') return ours(path);
    if (!path_of(folder, whole)) return 0;
    strncat(whole, "/", 2);
    strncat(whole, path, PATH_MAX - 2);
    return ours(whole);
}

/* 1 where this operation has to fail, with errno set; 2 where half of a write is to be done before the end */
static int disturbed(int writes) {
    int number = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST);
    if (number != control->at) return 0;
    control->hits++;
    if (control->action == TORN && writes) return 2;
    if (control->action == KILL || control->action == TORN) {
        kill(getpid(), SIGKILL);
        pause();
    }
    errno = control->action == FULL ? ENOSPC : EIO;
    return 1;
}

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = va_arg(rest, mode_t);                                                                            \
        va_end(rest);                                                                                                  \
        REAL(name);                                                                                                    \
        if ((flags & (O_CREAT | O_TRUNC)) && ours(path) && disturbed(0)) return -1;                                    \
        return real(path, flags, mode);                                                                                \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *path, int flags, ...) {                                                           \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = va_arg(rest, mode_t);                                                                            \
        va_end(rest);                                                                                                  \
        REAL(name);                                                                                                    \
        if ((flags & (O_CREAT | O_TRUNC)) && ours_at(folder, path) && disturbed(0)) return -1;                         \
        return real(folder, path, flags, mode);                                                                        \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int handle, const void *data, size_t size) {
    REAL(write);
    if (ours_open(handle)) {
        int how = disturbed(1);
        if (how == 2) {
            real(handle, data, size / 2);
            kill(getpid(), SIGKILL);
            pause();
        }
        if (how) return -1;
    }
    return real(handle, data, size);
}

#define PWRITE(name, type)                                                                                             \
    ssize_t name(int handle, const void *data, size_t size, type at) {                                                 \
        REAL(name);                                                                                                    \
        if (ours_open(handle)) {                                                                                       \
            int how = disturbed(1);                                                                                    \
            if (how == 2) {                                                                                            \
                real(handle, data, size / 2, at);                                                                      \
                kill(getpid(), SIGKILL);                                                                               \
                pause();                                                                                               \
            }                                                                                                          \
            if (how) return -1;                                                                                        \
        }                                                                                                              \
        return real(handle, data, size, at);                                                                           \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define ON_HANDLE(name)                                                                                                \
    int name(int handle) {                                                                                             \
        REAL(name);                                                                                                    \
        return ours_open(handle) && disturbed(0) ? -1 : real(handle);                                                  \
    }
ON_HANDLE(fsync)
ON_HANDLE(fdatasync)

#define ON_PATH(name)                                                                                                  \
    int name(const char *path) {                                                                                       \
        REAL(name);                                                                                                    \
        return ours(path) && disturbed(0) ? -1 : real(path);                                                           \
    }
ON_PATH(unlink)
ON_PATH(rmdir)

#define ON_TWO(name)                                                                                                   \
    int name(const char *old, const char *new) {                                                                       \
        REAL(name);                                                                                                    \
        return ours(new) && disturbed(0) ? -1 : real(old, new);                                                        \
    }
ON_TWO(link)
ON_TWO(rename)

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return ours(path) && disturbed(0) ? -1 : real(path, mode);
}

int linkat(int from, const char *old, int to, const char *new, int flags) {
    REAL(linkat);
    return ours_at(to, new) && disturbed(0) ? -1 : real(from, old, to, new, flags);
}

int renameat(int from, const char *old, int to, const char *new) {
    REAL(renameat);
    return ours_at(to, new) && disturbed(0) ? -1 : real(from, old, to, new);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    return ours_at(folder, path) && disturbed(0) ? -1 : real(folder, path, flags);
}

int ftruncate(int handle, off_t size) {
    REAL(ftruncate);
    return ours_open(handle) && disturbed(0) ? -1 : real(handle, size);
}

int ftruncate64(int handle, off64_t size) {
    REAL(ftruncate64);
    return ours_open(handle) && disturbed(0) ? -1 : real(handle, size);
}
