/* Stops a program before one of its file-system calls below a folder: loaded with LD_PRELOAD, told what to do by
 * faults_arm. A call is looked at by the path of its file, which /proc/self/fd tells for an open one. fsync is counted
 * and not done: nobody pulls the plug here, and waiting for a disk would take most of the time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* What a call does: takes room on the disk, changes something without that, or reads. */
enum { ROOM = 1, CHANGE = 2, READ = 4 };
enum { TEAR = -1 }; /* instead of a signal: do half of a write, then SIGKILL */

static char root[PATH_MAX];
static int counted, action, failure, log_to = -1;
static long first, last;
static atomic_long calls;

/* Count calls of the kinds below `folder`; at those from `from` to `to` send the signal, or else fail with `error`. */
void faults_arm(const char *folder, int kinds, long from, long to, int signal, int error, int log) {
    snprintf(root, sizeof root, "%s/", folder);
    first = from, last = to, action = signal, failure = error, log_to = log;
    atomic_store(&calls, 0);
    counted = kinds;
}

long faults_calls(void) { return atomic_load(&calls); }

static const char *of_handle(int handle, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
    return path;
}

static const char *of_name(int folder, const char *name, char *path) {
    if (name[0] == '/') return name;
    if (folder == AT_FDCWD) { if (!getcwd(path, PATH_MAX)) path[0] = 0; } else of_handle(folder, path);
    size_t size = strlen(path);
    snprintf(path + size, PATH_MAX - size, "/%s", name);
    return path;
}

static bool writes(int handle) { return (fcntl(handle, F_GETFL) & O_ACCMODE) != O_RDONLY; }

static void die(void) { for (kill(getpid(), SIGKILL);;) pause(); }

/* Whether the call is to fail; `tear` becomes true where half of it is to be done. */
static bool stopped(int kind, const char *call, const char *path, bool *tear) {
    if (!(counted & kind) || strncmp(path, root, strlen(root))) return false;
    long number = atomic_fetch_add(&calls, 1) + 1;
    if (log_to >= 0) {
        char line[PATH_MAX + 64];
        int size = snprintf(line, sizeof line, "%d %s %s\n", kind, call, path + strlen(root));
        syscall(SYS_write, log_to, line, size < (int)sizeof line ? size : (int)sizeof line - 1);
    }
    if (number < first || number > last) return false;
    if (action == TEAR) { if (tear) *tear = true; else die(); return false; }
    if (action == SIGKILL) die();
    if (action) { kill(getpid(), action); return false; }
    errno = failure;
    return true;
}

#define REAL(type, name, parameters) \
    static type (*real) parameters; if (!real) real = (type (*) parameters)dlsym(RTLD_NEXT, #name)
#define STOP(kind, name, path, tear) (counted && stopped(kind, #name, path, tear))
#define HANDLE(fd) of_handle(fd, (char[PATH_MAX]){0})
#define NAME(folder, name) of_name(folder, name, (char[PATH_MAX]){0})
#define HERE(name) NAME(AT_FDCWD, name)

#define CALL(type, name, parameters, arguments, kind, path) type name parameters { \
    REAL(type, name, parameters); \
    return STOP(kind, name, path, 0) ? (type)-1 : real arguments; }
#define WRITE(name, parameters, arguments, half) ssize_t name parameters { \
    REAL(ssize_t, name, parameters); bool tear = false; \
    if (STOP(ROOM, name, HANDLE(fd), &tear)) return -1; \
    if (tear) { ssize_t done = real half; (void)done; die(); } \
    return real arguments; }
#define SYNC(name) int name(int fd) { \
    REAL(int, name, (int)); \
    return STOP(ROOM, name, HANDLE(fd), 0) ? -1 : counted ? 0 : real(fd); }
#define MODE(mode) va_list list; va_start(list, flags); mode_t mode = va_arg(list, mode_t); va_end(list)
#define OPENS(flags) ((flags) & (O_CREAT | O_TRUNC) ? ROOM : (flags) & O_ACCMODE ? CHANGE : READ)
#define OPEN(name) int name(const char *path, int flags, ...) { \
    REAL(int, name, (const char *, int, ...)); MODE(mode); \
    return STOP(OPENS(flags), name, HERE(path), 0) ? -1 : real(path, flags, mode); }
#define OPENAT(name) int name(int folder, const char *path, int flags, ...) { \
    REAL(int, name, (int, const char *, int, ...)); MODE(mode); \
    return STOP(OPENS(flags), name, NAME(folder, path), 0) ? -1 : real(folder, path, flags, mode); }
#define FOPEN(name) FILE *name(const char *path, const char *mode) { \
    REAL(FILE *, name, (const char *, const char *)); \
    return STOP(strpbrk(mode, "wa+") ? ROOM : READ, name, HERE(path), 0) ? NULL : real(path, mode); }

OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) FOPEN(fopen) FOPEN(fopen64) SYNC(fsync) SYNC(fdatasync)
WRITE(write, (int fd, const void *data, size_t size), (fd, data, size), (fd, data, size / 2))
WRITE(pwrite, (int fd, const void *data, size_t size, off_t to), (fd, data, size, to), (fd, data, size / 2, to))
WRITE(pwrite64, (int fd, const void *data, size_t size, off64_t to), (fd, data, size, to), (fd, data, size / 2, to))
WRITE(writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), (fd, parts, count / 2))
WRITE(copy_file_range, (int from, off64_t *at, int fd, off64_t *to, size_t size, unsigned flags),
      (from, at, fd, to, size, flags), (from, at, fd, to, size / 2, flags))
WRITE(sendfile64, (int fd, int from, off64_t *at, size_t size), (fd, from, at, size), (fd, from, at, size / 2))
WRITE(sendfile, (int fd, int from, off_t *at, size_t size), (fd, from, at, size), (fd, from, at, size / 2))
CALL(int, ftruncate, (int fd, off_t size), (fd, size), ROOM, HANDLE(fd))
CALL(int, ftruncate64, (int fd, off64_t size), (fd, size), ROOM, HANDLE(fd))
CALL(int, fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size), ROOM, HANDLE(fd))
CALL(int, mkdir, (const char *path, mode_t mode), (path, mode), ROOM, HERE(path))
CALL(int, mkdirat, (int folder, const char *path, mode_t mode), (folder, path, mode), ROOM, NAME(folder, path))
CALL(int, rename, (const char *old, const char *new), (old, new), ROOM, HERE(new))
CALL(int, renameat, (int of, const char *old, int folder, const char *new), (of, old, folder, new), ROOM,
     NAME(folder, new))
CALL(int, renameat2, (int of, const char *old, int folder, const char *new, unsigned flags),
     (of, old, folder, new, flags), ROOM, NAME(folder, new))
CALL(int, link, (const char *old, const char *new), (old, new), ROOM, HERE(new))
CALL(int, linkat, (int of, const char *old, int folder, const char *new, int flags),
     (of, old, folder, new, flags), ROOM, NAME(folder, new))
CALL(int, symlink, (const char *to, const char *new), (to, new), ROOM, HERE(new))
CALL(int, symlinkat, (const char *to, int folder, const char *new), (to, folder, new), ROOM, NAME(folder, new))
CALL(int, unlink, (const char *path), (path), CHANGE, HERE(path))
CALL(int, unlinkat, (int folder, const char *path, int flags), (folder, path, flags), CHANGE, NAME(folder, path))
CALL(int, rmdir, (const char *path), (path), CHANGE, HERE(path))
CALL(int, chmod, (const char *path, mode_t mode), (path, mode), CHANGE, HERE(path))
CALL(int, fchmod, (int fd, mode_t mode), (fd, mode), CHANGE, HANDLE(fd))
CALL(ssize_t, read, (int fd, void *data, size_t size), (fd, data, size), READ, HANDLE(fd))
CALL(ssize_t, pread, (int fd, void *data, size_t size, off_t at), (fd, data, size, at), READ, HANDLE(fd))
CALL(ssize_t, pread64, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at), READ, HANDLE(fd))

/* The file is closed all the same, as Linux does it. */
int close(int fd) {
    REAL(int, close, (int));
    bool fails = counted && writes(fd) && STOP(CHANGE, close, HANDLE(fd), 0);
    int done = real(fd), error = failure;
    return fails ? (errno = error, -1) : done;
}

int ioctl(int fd, unsigned long request, ...) {
    REAL(int, ioctl, (int, unsigned long, ...));
    va_list list; va_start(list, request); void *argument = va_arg(list, void *); va_end(list);
    bool clones = request == 0x40049409; /* FICLONE */
    return clones && STOP(ROOM, ioctl, HANDLE(fd), 0) ? -1 : real(fd, request, argument);
}
