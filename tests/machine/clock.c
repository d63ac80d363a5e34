/* Moves the wall clock of one process by as many seconds as stand in the file that CLOCK_FILE
   names, as somebody who sets the machine's clock would: preloaded, and read at every look at the
   clock, so that it can be set while the process runs. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
  int result = (int)syscall(SYS_clock_gettime, clock, time);
  if (result != 0 || clock != CLOCK_REALTIME) return result;
  const char *path = getenv("CLOCK_FILE");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return result;
  char text[32];
  ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  if (length > 0) {
    text[length] = 0;
    time->tv_sec += atol(text);
  }
  return result;
}
