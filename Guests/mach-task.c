// GNU Mach's first task, where Hurd's would be: prints by a system call of the kernel's, which is a far call through a gate, and
// gives up the processor for good.

__asm__(
    ".globl _start\n"
    "_start: push $text\n"
    "call print\n"
    "rest: call yield\n"
    "jmp rest\n"
    // mach_print and swtch_pri, by their trap numbers; a stub's return address lies between them and their arguments.
    "print: mov $-30, %eax\n"
    "lcall $7, $0\n"
    "ret\n"
    "yield: mov $-59, %eax\n"
    "lcall $7, $0\n"
    "ret\n");

char text[] = "task: runs in user mode\n";
