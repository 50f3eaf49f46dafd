/* Two manners of a cell that evcxr does not have. `make kernel` loads this before it (LD_PRELOAD), on Linux.

   evcxr runs cells in a process whose standard input carries its own commands: a cell that reads from there would take
   the next command, and wait for it until somebody interrupts. Here it gets an error. And evcxr interrupts a cell by
   SIGKILL, of which nobody can say a word. Here it is SIGTERM first, and the process says what a panic says. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static enum { SOMETHING_ELSE, KERNEL, CELLS } role;

static void say(const char *text) { syscall(SYS_write, 2, text, strlen(text)); }

static void interrupted(int number) {
    say("interrupted\nThe kernel's process has ended and its variables are lost: run the notebook from the top.\n");
    _exit(128 + number);
}

__attribute__((constructor)) static void begin(void) {
    if (getenv("EVCXR_IS_RUNTIME")) {
        role = CELLS;
        signal(SIGTERM, interrupted);
    } else if (strcmp(program_invocation_short_name, "evcxr_jupyter") == 0) {
        role = KERNEL;
        return; /* it hands the variable on to the process for the cells */
    }
    unsetenv("LD_PRELOAD");
}

/* Whether the program itself calls: evcxr's own standard library is a part of it, a cell's is not. */
static int of_program(void *caller) {
    Dl_info here, program;
    return dladdr(caller, &here) && dladdr((void *)getauxval(AT_ENTRY), &program) && here.dli_fbase == program.dli_fbase;
}

ssize_t read(int file, void *buffer, size_t size) {
    if (file == 0 && role == CELLS && !of_program(__builtin_return_address(0))) {
        say("a cell cannot read input: write the value into the cell\n");
        errno = ENOTSUP;
        return -1;
    }
    return syscall(SYS_read, file, buffer, size);
}

int kill(pid_t process, int number) {
    if (role == KERNEL && number == SIGKILL && syscall(SYS_kill, process, SIGTERM) == 0) {
        for (int tenth = 0; tenth < 5; tenth++) {
            siginfo_t end = {.si_pid = 0};
            if (waitid(P_PID, process, &end, WEXITED | WNOHANG | WNOWAIT) == 0 && end.si_pid == process) return 0;
            usleep(100 * 1000);
        }
    }
    return syscall(SYS_kill, process, number);
}
