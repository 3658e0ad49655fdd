/* Preloaded into a process, this library sees every call of it that changes the disk, before the system does: it counts
 * them, writes each with its data to a log, and at a chosen one kills or stops the process or answers with an error.
 *
 * It sees what goes through the C library and is silent until `crash_arm` is called (or CRASH_ARM is set, for a process
 * that is executed). Calls are made one after another, under a lock, so that a number names a call. What is opened in
 * /dev and /proc is no disk. What it cannot see: system calls made without the C library, and mappings; the strace run
 * of `make crash` counts those calls too. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { COUNT, KILL, HALF, SHORT, STOP, FAIL, FAIL_FROM_HERE };
enum { FILES = 4096, LONGEST = 4096 };

struct entry { /* one call in the log; the name of the call, two paths and the data follow */
  int32_t name, path, other, fd, flags, error;
  int64_t result, size, offset;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int armed, action, error_number, log_descriptor = -1;
static long calls, chosen;
static char *opened[FILES]; /* the path under which a descriptor was opened */

void crash_arm(long at, int what, int error, const char *log) {
  log_descriptor = log && *log ? (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
  calls = 0, chosen = at, action = what, error_number = error, armed = 1;
}

__attribute__((constructor)) static void arm_by_environment(void) {
  const char *wish = getenv("CRASH_ARM");
  long at;
  int what, error, end;
  if (wish && sscanf(wish, "%ld,%d,%d,%n", &at, &what, &error, &end) == 3) crash_arm(at, what, error, wish + end);
}

static void put(const void *bytes, size_t size) {
  for (const char *at = bytes; size;) {
    ssize_t count = syscall(SYS_write, log_descriptor, at, size);
    if (count <= 0) abort();
    at += count, size -= (size_t)count;
  }
}

static void note(const char *name, const char *path, const char *other, const void *data, struct entry entry) {
  if (log_descriptor < 0) return;
  entry.name = (int32_t)strlen(name), entry.path = (int32_t)strlen(path), entry.other = (int32_t)strlen(other);
  put(&entry, sizeof entry);
  put(name, (size_t)entry.name), put(path, (size_t)entry.path), put(other, (size_t)entry.other);
  if (data && entry.result > 0) put(data, (size_t)entry.result);
}

/* Whether this call is to be made. Room is what a full disk lacks; a dead one fails everything. */
static int permitted(int needs_room) {
  calls++;
  if (calls < chosen || action == COUNT) return 1;
  if (action == FAIL_FROM_HERE && (error_number != ENOSPC || needs_room)) return errno = error_number, 0;
  if (calls > chosen) return 1;
  if (action == KILL) kill(getpid(), SIGKILL), pause();
  if (action == STOP) kill(getpid(), SIGSTOP);
  if (action == FAIL) return errno = error_number, 0;
  return 1;
}

static const char *absolute(int folder, const char *path, char *room) {
  char link[64], base[LONGEST / 2] = "";
  if (path[0] == '/') return path;
  snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
  ssize_t size = readlink(link, base, sizeof base - 1);
  base[size < 0 ? 0 : size] = 0;
  snprintf(room, LONGEST, "%s/%s", base, path);
  return room;
}

static int on_disk(const char *path) { return strncmp(path, "/dev/null", 9) && strncmp(path, "/proc/", 6) && strncmp(path, "/dev/pts", 8); }

static const char *path_of(int fd) { return armed && fd >= 0 && fd < FILES ? opened[fd] : NULL; }

static void remember(int fd, const char *path) {
  if (fd < 0 || fd >= FILES) return;
  free(opened[fd]);
  opened[fd] = path ? strdup(path) : NULL;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int any_open(int folder, const char *given, int flags, mode_t mode) {
  static __typeof__(&openat) real;
  if (!real) real = REAL(openat);
  if (!armed) return real(folder, given, flags, mode);
  char room[LONGEST];
  const char *path = absolute(folder, given, room);
  int changes = (flags & (O_CREAT | O_TRUNC | O_ACCMODE)) != O_RDONLY && on_disk(path);
  pthread_mutex_lock(&lock);
  int existed = faccessat(folder, given, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
  int fd = changes && !permitted(!existed) ? -1 : real(folder, given, flags, mode);
  int error = errno;
  if (fd >= 0) remember(fd, on_disk(path) ? path : NULL);
  if (changes || (fd >= 0 && (flags & O_DIRECTORY)))
    note(changes ? "open" : "look", path, "", NULL, (struct entry){.fd = fd, .flags = flags, .result = fd, .error = fd < 0 ? error : 0, .size = (int64_t)mode});
  pthread_mutex_unlock(&lock);
  return errno = error, fd;
}

#define MODE_OF(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

int open(const char *path, int flags, ...) { MODE_OF(flags) return any_open(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) return any_open(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE_OF(flags) return any_open(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE_OF(flags) return any_open(folder, path, flags, mode); }
int creat(const char *path, mode_t mode) { return any_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int fd) {
  pthread_mutex_lock(&lock);
  if (armed) remember(fd, NULL);
  int result = REAL(close)(fd), error = errno;
  pthread_mutex_unlock(&lock);
  return errno = error, result;
}

/* A write of `size` bytes at `offset`, or at the file's own place if that is negative. */
static ssize_t any_write(int fd, const void *data, size_t size, off_t offset) {
  static __typeof__(&write) real;
  static __typeof__(&pwrite) real_at;
  if (!real) real = REAL(write), real_at = REAL(pwrite);
  const char *path = path_of(fd);
  if (!path) return offset < 0 ? real(fd, data, size) : real_at(fd, data, size, offset);
  pthread_mutex_lock(&lock);
  ssize_t count = -1;
  if (permitted(1)) {
    int torn = calls == chosen && (action == HALF || action == SHORT) && size > 1;
    size_t part = torn ? size / 2 : size;
    count = offset < 0 ? real(fd, data, part) : real_at(fd, data, part, offset);
    if (calls == chosen && action == HALF) kill(getpid(), SIGKILL), pause();
  }
  int error = errno;
  note("write", path, "", data, (struct entry){.fd = fd, .result = count, .size = (int64_t)size, .offset = offset, .error = count < 0 ? error : 0});
  pthread_mutex_unlock(&lock);
  return errno = error, count;
}

ssize_t write(int fd, const void *data, size_t size) { return any_write(fd, data, size, -1); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return any_write(fd, data, size, offset); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return any_write(fd, data, size, offset); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
  return path_of(fd) && count ? any_write(fd, parts[0].iov_base, parts[0].iov_len, -1) : REAL(writev)(fd, parts, count);
}

/* A call on an opened file, and one on names. */
#define ON_FILE(name, fd, needs_room, flags_, size_, call) \
  const char *path = path_of(fd); \
  if (!path) return call; \
  pthread_mutex_lock(&lock); \
  int result = permitted(needs_room) ? call : -1, error = errno; \
  note(name, path, "", NULL, (struct entry){.fd = fd, .flags = flags_, .result = result, .size = size_, .error = result < 0 ? error : 0}); \
  pthread_mutex_unlock(&lock); \
  return errno = error, result;

#define ON_NAMES(name, folder, given, folder2, given2, needs_room, flags_, call) \
  if (!armed) return call; \
  char room[LONGEST], room2[LONGEST]; \
  pthread_mutex_lock(&lock); \
  const char *path = absolute(folder, given, room), *other = *(given2) ? absolute(folder2, given2, room2) : ""; \
  int result = permitted(needs_room) ? call : -1, error = errno; \
  note(name, path, other, NULL, (struct entry){.fd = -1, .flags = flags_, .result = result, .error = result < 0 ? error : 0}); \
  pthread_mutex_unlock(&lock); \
  return errno = error, result;

int fsync(int fd) { ON_FILE("fsync", fd, 0, 0, 0, REAL(fsync)(fd)) }
int fdatasync(int fd) { ON_FILE("fdatasync", fd, 0, 0, 0, REAL(fdatasync)(fd)) }
int ftruncate(int fd, off_t size) { ON_FILE("ftruncate", fd, 0, 0, (int64_t)size, REAL(ftruncate)(fd, size)) }
int ftruncate64(int fd, off_t size) { ON_FILE("ftruncate", fd, 0, 0, (int64_t)size, REAL(ftruncate)(fd, size)) }
int fchmod(int fd, mode_t mode) { ON_FILE("fchmod", fd, 0, (int)mode, 0, REAL(fchmod)(fd, mode)) }
int flock(int fd, int operation) { ON_FILE("flock", fd, 0, operation, 0, REAL(flock)(fd, operation)) }

int rename(const char *from, const char *to) { ON_NAMES("rename", AT_FDCWD, from, AT_FDCWD, to, 0, 0, REAL(rename)(from, to)) }
int renameat(int a, const char *from, int b, const char *to) { ON_NAMES("rename", a, from, b, to, 0, 0, REAL(renameat)(a, from, b, to)) }
int link(const char *from, const char *to) { ON_NAMES("link", AT_FDCWD, from, AT_FDCWD, to, 1, 0, REAL(link)(from, to)) }
int linkat(int a, const char *from, int b, const char *to, int flags) { ON_NAMES("link", a, from, b, to, 1, 0, REAL(linkat)(a, from, b, to, flags)) }
int symlink(const char *to, const char *path_) { ON_NAMES("symlink", AT_FDCWD, path_, AT_FDCWD, "", 1, 0, REAL(symlink)(to, path_)) }
int unlink(const char *given) { ON_NAMES("unlink", AT_FDCWD, given, AT_FDCWD, "", 0, 0, REAL(unlink)(given)) }
int unlinkat(int folder, const char *given, int flags) { ON_NAMES(flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, given, AT_FDCWD, "", 0, 0, REAL(unlinkat)(folder, given, flags)) }
int mkdir(const char *given, mode_t mode) { ON_NAMES("mkdir", AT_FDCWD, given, AT_FDCWD, "", 1, (int)mode, REAL(mkdir)(given, mode)) }
int mkdirat(int folder, const char *given, mode_t mode) { ON_NAMES("mkdir", folder, given, AT_FDCWD, "", 1, (int)mode, REAL(mkdirat)(folder, given, mode)) }
int rmdir(const char *given) { ON_NAMES("rmdir", AT_FDCWD, given, AT_FDCWD, "", 0, 0, REAL(rmdir)(given)) }
int truncate(const char *given, off_t size) { ON_NAMES("truncate", AT_FDCWD, given, AT_FDCWD, "", 0, 0, REAL(truncate)(given, size)) }
int truncate64(const char *given, off_t size) { ON_NAMES("truncate", AT_FDCWD, given, AT_FDCWD, "", 0, 0, REAL(truncate)(given, size)) }
int chmod(const char *given, mode_t mode) { ON_NAMES("chmod", AT_FDCWD, given, AT_FDCWD, "", 0, (int)mode, REAL(chmod)(given, mode)) }
int fchmodat(int folder, const char *given, mode_t mode, int flags) { ON_NAMES("chmod", folder, given, AT_FDCWD, "", 0, (int)mode, REAL(fchmodat)(folder, given, mode, flags)) }
