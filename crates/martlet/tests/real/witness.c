/* Does what a hold is there to prevent: looks at the clock, at random bytes and at its names as often as it can, and writes down
 * what it saw. One line: seconds.nanoseconds random host-name has-the-hook-run. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **words)
{
	int out = open(words[1], O_WRONLY | O_APPEND | O_CREAT, 0644);
	for (;;) {
		struct timespec now;
		unsigned long random;
		char host[65] = "", line[160];
		clock_gettime(CLOCK_REALTIME, &now);
		if (getrandom(&random, sizeof random, 0) != sizeof random)
			return 1;
		gethostname(host, 64);
		int size = snprintf(line, sizeof line, "%ld.%09ld %016lx %s %d\n", now.tv_sec, now.tv_nsec, random, host,
				    access("/run/hook-ran", F_OK) == 0);
		if (write(out, line, size) != size)
			return 1;
		usleep(300);
	}
}
