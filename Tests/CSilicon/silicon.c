#define _GNU_SOURCE
#include "CSilicon.h"

#include <asm/ldt.h>
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

// The trampoline's own state. It reaches its variables relative to RIP, because no register is free.
__attribute__((visibility("hidden"))) uint64_t silicon_code_target, silicon_host_stack, silicon_host_fs;
__attribute__((visibility("hidden"))) struct silicon_state *silicon_in, *silicon_out;
__attribute__((visibility("hidden"))) uint64_t silicon_scratch[2];
// The components of XCR0 that are loaded and stored: x87, SSE, AVX and, where the CPU has it, AVX-512.
__attribute__((visibility("hidden"))) uint32_t silicon_components;
// Where 32-bit code starts, with its selector; and the selectors of fs and gs there.
struct far_pointer {
    uint32_t offset;
    uint16_t selector;
} __attribute__((packed, aligned(8)));
__attribute__((visibility("hidden"))) struct far_pointer silicon_narrow_target;
__attribute__((visibility("hidden"))) uint16_t silicon_fs_selector, silicon_gs_selector;
__attribute__((visibility("hidden"))) uint16_t silicon_data_selector;
void silicon_enter(void);
void silicon_enter_narrow(void);
void silicon_leave(void);
void silicon_leave_fault(void);

// The offsets below are those of `struct silicon_state`.
_Static_assert(__builtin_offsetof(struct silicon_state, rip) == 128, "layout");
_Static_assert(__builtin_offsetof(struct silicon_state, rflags) == 136, "layout");
_Static_assert(__builtin_offsetof(struct silicon_state, fs_base) == 144, "layout");
_Static_assert(__builtin_offsetof(struct silicon_state, gs_base) == 152, "layout");
_Static_assert(__builtin_offsetof(struct silicon_state, error) == 168, "layout");
_Static_assert(__builtin_offsetof(struct silicon_state, selectors) == 184, "layout");
_Static_assert(__builtin_offsetof(struct silicon_state, xsave) == 192, "layout");

__asm__(
    ".text\n"
    ".macro enter_begin\n"
    "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "  mov %rsp, silicon_host_stack(%rip)\n"
    "  rdfsbase %rax\n"
    "  mov %rax, silicon_host_fs(%rip)\n"
    "  mov silicon_in(%rip), %r15\n"
    "  mov silicon_components(%rip), %eax\n"
    "  xor %edx, %edx\n"
    "  xrstor64 192(%r15)\n"
    ".endm\n"
    ".macro enter_end\n"
    "  push 136(%r15)\n"
    "  popf\n"
    "  mov 0(%r15), %rax\n"
    "  mov 8(%r15), %rcx\n"
    "  mov 16(%r15), %rdx\n"
    "  mov 24(%r15), %rbx\n"
    "  mov 32(%r15), %rsp\n"
    "  mov 40(%r15), %rbp\n"
    "  mov 48(%r15), %rsi\n"
    "  mov 56(%r15), %rdi\n"
    "  mov 64(%r15), %r8\n"
    "  mov 72(%r15), %r9\n"
    "  mov 80(%r15), %r10\n"
    "  mov 88(%r15), %r11\n"
    "  mov 96(%r15), %r12\n"
    "  mov 104(%r15), %r13\n"
    "  mov 112(%r15), %r14\n"
    "  mov 120(%r15), %r15\n"
    ".endm\n"

    ".globl silicon_enter\n"
    ".hidden silicon_enter\n"
    "silicon_enter:\n"
    "  enter_begin\n"
    "  xor %eax, %eax\n"
    "  mov %eax, %ds\n"
    "  mov %eax, %es\n"
    "  mov %eax, %fs\n"
    "  mov %eax, %gs\n"
    "  mov 144(%r15), %rax\n"
    "  wrfsbase %rax\n"
    "  mov 152(%r15), %rax\n"
    "  wrgsbase %rax\n"
    "  enter_end\n"
    "  jmp *silicon_code_target(%rip)\n"

    ".globl silicon_enter_narrow\n"
    ".hidden silicon_enter_narrow\n"
    "silicon_enter_narrow:\n"
    "  enter_begin\n"
    "  movzwl silicon_data_selector(%rip), %eax\n"
    "  mov %eax, %ds\n"
    "  mov %eax, %es\n"
    // Its base counts once the code is no longer 64-bit code.
    "  mov %eax, %ss\n"
    "  mov silicon_fs_selector(%rip), %fs\n"
    "  mov silicon_gs_selector(%rip), %gs\n"
    "  enter_end\n"
    "  ljmp *silicon_narrow_target(%rip)\n"

    ".globl silicon_leave\n"
    ".hidden silicon_leave\n"
    "silicon_leave:\n"
    "  mov %r15, silicon_scratch(%rip)\n"
    "  mov silicon_out(%rip), %r15\n"
    "  mov %rax, 0(%r15)\n"
    "  mov %rcx, 8(%r15)\n"
    "  mov %rdx, 16(%r15)\n"
    "  mov %rbx, 24(%r15)\n"
    "  mov %rsp, 32(%r15)\n"
    "  mov %rbp, 40(%r15)\n"
    "  mov %rsi, 48(%r15)\n"
    "  mov %rdi, 56(%r15)\n"
    "  mov %r8, 64(%r15)\n"
    "  mov %r9, 72(%r15)\n"
    "  mov %r10, 80(%r15)\n"
    "  mov %r11, 88(%r15)\n"
    "  mov %r12, 96(%r15)\n"
    "  mov %r13, 104(%r15)\n"
    "  mov %r14, 112(%r15)\n"
    "  mov silicon_scratch(%rip), %rax\n"
    "  mov %rax, 120(%r15)\n"
    "  movw %es, 184(%r15)\n"
    "  movw %ds, 186(%r15)\n"
    "  movw %fs, 188(%r15)\n"
    "  movw %gs, 190(%r15)\n"
    "  movw %ss, 174(%r15)\n"
    "  mov silicon_host_stack(%rip), %rsp\n"
    "  pushf\n"
    "  pop %rax\n"
    // Linux's data segment for user code.
    "  mov $0x2b, %ecx\n"
    "  mov %ecx, %ss\n"
    "  mov %rax, 136(%r15)\n"
    "  rdfsbase %rax\n"
    "  mov %rax, 144(%r15)\n"
    "  rdgsbase %rax\n"
    "  mov %rax, 152(%r15)\n"
    "  mov silicon_components(%rip), %eax\n"
    "  xor %edx, %edx\n"
    "  xsave64 192(%r15)\n"
    ".globl silicon_leave_fault\n"
    ".hidden silicon_leave_fault\n"
    // After a fault the signal handler has stored everything and comes here.
    "silicon_leave_fault:\n"
    "  mov silicon_host_stack(%rip), %rsp\n"
    "  mov silicon_host_fs(%rip), %rax\n"
    "  wrfsbase %rax\n"
    "  fninit\n"
    "  movl $0x1f80, silicon_scratch(%rip)\n"
    "  ldmxcsr silicon_scratch(%rip)\n"
    "  vzeroupper\n"
    "  pushq $2\n"
    "  popf\n"
    "  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "  ret\n");

void silicon_write_exit(uint8_t *code) {
    // jmp *pointer: the pointer is aligned, since RFLAGS.AC may be set.
    const uint8_t jump[3] = {0xFF, 0x24, 0x25};
    const uint32_t pointer = SILICON_GATE + SILICON_GATE_POINTER;
    memcpy(code, jump, sizeof jump);
    memcpy(code + sizeof jump, &pointer, sizeof pointer);
}

void silicon_write_narrow_exit(uint8_t *code, uint32_t mode) {
    // jmp 0x33:gate, to Linux's 64-bit code segment.
    const uint32_t gate = SILICON_GATE;
    const uint16_t selector = 0x33;
    if (mode == SILICON_SEGMENTED_16) *code++ = 0x66;
    *code++ = 0xEA;
    memcpy(code, &gate, sizeof gate);
    memcpy(code + sizeof gate, &selector, sizeof selector);
}

// MARK: The process that runs cases

static struct silicon_shared *served;
static volatile int is_inside;

// Places of the general registers in the signal frame, in encoding order.
static const int frame_places[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                     REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

// AVX-512's components in the signal frame, and the frame's bytes up to the last.
static struct { uint32_t bytes, offset; } wide[3];
static uint32_t image_bytes;

static void take_fault(int number, siginfo_t *info, void *raw) {
    (void)number;
    (void)info;
    // RFLAGS.AC may be the case's: nothing misaligned before it is off.
    __asm__ volatile("lea -128(%%rsp), %%rsp; pushfq; andl $~0x40000, (%%rsp); popfq; lea 128(%%rsp), %%rsp" : : : "memory", "cc");
    // The fs base too: nothing thread-local before it is back. The rest of the way out is shared.
    ucontext_t *context = raw;
    if (!is_inside) _exit(99);
    uint64_t base;
    struct silicon_state *out = silicon_out;
    __asm__ volatile("rdfsbase %0" : "=r"(base));
    out->fs_base = base;
    __asm__ volatile("rdgsbase %0" : "=r"(base));
    out->gs_base = base;
    __asm__ volatile("wrfsbase %0" : : "r"(silicon_host_fs));
    greg_t *registers = context->uc_mcontext.gregs;
    for (int i = 0; i < 16; i++) out->gpr[i] = (uint64_t)registers[frame_places[i]];
    out->rip = (uint64_t)registers[REG_RIP];
    out->rflags = (uint64_t)registers[REG_EFL];
    out->vector = (uint64_t)registers[REG_TRAPNO];
    // Linux has kept CS and SS; the others are still in place.
    uint64_t selectors = (uint64_t)registers[REG_CSGSFS], es, ds, fs, gs;
    out->error = (registers[REG_ERR] & 0xFFFFFFFF) | (selectors & 0xFFFF) << 32 | (selectors >> 48) << 48;
    __asm__ volatile("mov %%es, %k0; mov %%ds, %k1; mov %%fs, %k2; mov %%gs, %k3" : "=r"(es), "=r"(ds), "=r"(fs), "=r"(gs));
    out->selectors = (es & 0xFFFF) | (ds & 0xFFFF) << 16 | (fs & 0xFFFF) << 32 | (gs & 0xFFFF) << 48;
    out->fault_address = (uint64_t)registers[REG_CR2];
    // The kernel saves in the standard format; a component that is in its initial state may be left out.
    const uint8_t *image = (const uint8_t *)context->uc_mcontext.fpregs;
    memcpy(out->xsave, image, image_bytes);
    uint64_t present;
    memcpy(&present, image + 512, sizeof present);
    if (!(present & 2)) memset(out->xsave + 160, 0, 256);
    if (!(present & 4)) memset(out->xsave + 576, 0, 256);
    for (int i = 5; i < 8; i++) {
        if (!(present & 1u << i) && wide[i - 5].bytes) memset(out->xsave + wide[i - 5].offset, 0, wide[i - 5].bytes);
    }
    registers[REG_RIP] = (greg_t)(uintptr_t)silicon_leave_fault;
    registers[REG_EFL] = 2;
    // Back to 64-bit code.
    registers[REG_CSGSFS] = (registers[REG_CSGSFS] & 0xFFFFFFFF0000) | 0x33 | (greg_t)0x2B << 48;
}

static void find_components(void) {
    silicon_components = 7;
    uint32_t low, high, a, b, c, d;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    image_bytes = 832;
    if ((low & 0xE0) != 0xE0) return;
    silicon_components |= 0xE0;
    for (uint32_t i = 5; i < 8; i++) {
        a = 0xD, c = i;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        wide[i - 5].bytes = a;
        wide[i - 5].offset = b;
        if (a + b > image_bytes) image_bytes = a + b;
    }
    if (image_bytes > SILICON_XSAVE_BYTES) _exit(97);
}

static void run_case(struct silicon_case *one) {
    memcpy((void *)(uintptr_t)SILICON_ARENA, served->patterns[one->pattern % SILICON_PATTERNS],
           SILICON_ARENA_READ_ONLY_PAGE * 4096);
    size_t behind = (SILICON_ARENA_READ_ONLY_PAGE + 1) * 4096;
    memcpy((void *)(uintptr_t)(SILICON_ARENA + behind), served->patterns[one->pattern % SILICON_PATTERNS] + behind,
           SILICON_ARENA_BYTES - behind);
    if (one->patch_count <= SILICON_PATCH_BYTES)
        memcpy((void *)(uintptr_t)(SILICON_ARENA + one->patch_offset), one->patch, one->patch_count);
    silicon_in = &one->in;
    silicon_out = &one->out;
    one->out.vector = SILICON_DONE;
    one->out.error = 0;
    one->out.fault_address = 0;
    one->out.rip = 0;
    silicon_code_target = one->in.rip;
    silicon_narrow_target.offset = (uint32_t)one->in.rip;
    uint16_t slot = (uint16_t)(one - served->cases);
    switch (one->mode) {
    case SILICON_SEGMENTED_16:
        silicon_narrow_target.selector = (uint16_t)(SILICON_CODE_16 + slot * 8);
        silicon_data_selector = SILICON_DATA_16;
        break;
    case SILICON_SEGMENTED_32:
        silicon_narrow_target.selector = (uint16_t)(SILICON_CODE_32 + slot * 8);
        silicon_data_selector = SILICON_DATA_32;
        break;
    default:
        silicon_narrow_target.selector = 0x23;
        silicon_data_selector = 0x2B;
    }
    is_inside = 1;
    if (one->mode != SILICON_LONG) silicon_enter_narrow();
    else silicon_enter();
    is_inside = 0;
    memcpy(one->arena, (void *)(uintptr_t)SILICON_ARENA, SILICON_ARENA_BYTES);
}

// A data segment of the process, for fs and gs: in the LDT or, by the call of 32-bit programs, in the GDT.
static int describe_segment(unsigned number, struct user_desc *segment);
static uint16_t make_segment(unsigned number) {
    struct user_desc segment;
    describe_segment(number, &segment);
    if (syscall(SYS_modify_ldt, 0x11, &segment, sizeof segment) == 0) return (uint16_t)(number << 3 | 7);
    segment.entry_number = (unsigned)-1;
    // The arena lies where 32-bit programs reach it.
    struct user_desc *low = (struct user_desc *)(uintptr_t)SILICON_ARENA;
    *low = segment;
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(243), "b"(low) : "memory", "r8", "r9", "r10", "r11");
    return result == 0 ? (uint16_t)(low->entry_number << 3 | 3) : 0;
}

// The LDT: fs and gs, data and code of the modes, and the special ones.
static int describe_segment(unsigned number, struct user_desc *segment) {
    *segment = (struct user_desc){.entry_number = number, .limit = 0xFFFF, .useable = 1};
    if (number == 0 || number == 1) {
        segment->base_addr = number ? SILICON_GS_BASE : SILICON_FS_BASE;
        segment->limit = 0xFFFFF;
        segment->seg_32bit = segment->limit_in_pages = 1;
        return 1;
    }
    if (number == SILICON_DATA_16 >> 3 || number == SILICON_DATA_32 >> 3) {
        segment->base_addr = SILICON_ARENA;
        segment->limit = SILICON_ARENA_BYTES - 1;
        segment->seg_32bit = number == SILICON_DATA_32 >> 3;
        return 1;
    }
    for (unsigned is_wide = 0; is_wide < 2; is_wide++) {
        unsigned first = (is_wide ? SILICON_CODE_32 : SILICON_CODE_16) >> 3;
        if (number < first || number >= first + SILICON_CASES) continue;
        segment->base_addr = SILICON_CODE + (number - first) * SILICON_CASE_BYTES;
        segment->contents = 2;
        segment->seg_32bit = is_wide;
        return 1;
    }
    // contents: 0 data, 1 expand-down data, 2 code, 3 conforming code, which Linux takes only when it is not present.
    static const struct {
        uint8_t contents, is_wide, is_limited, in_pages, is_absent;
        uint32_t base, limit;
    } special[SILICON_SPECIAL_SEGMENT_COUNT] = {
        {1, 1, 0, 0, 0, SILICON_ARENA, 0x0FFF}, {1, 0, 0, 0, 0, SILICON_ARENA, 0x0FFF}, {0, 1, 1, 0, 0, SILICON_ARENA, 0x3FFF},
        {1, 1, 1, 0, 0, SILICON_ARENA, 0x2FFF}, {2, 1, 1, 0, 0, SILICON_CODE, 0xFFFF},  {2, 0, 1, 0, 0, SILICON_CODE, 0xFFFF},
        {2, 1, 0, 0, 1, SILICON_CODE, 0xFFFF},  {0, 1, 0, 0, 1, SILICON_ARENA, 0xFFFF}, {3, 1, 0, 0, 1, SILICON_CODE, 0xFFFF},
        {0, 0, 0, 0, 0, SILICON_ARENA, 0x007F}, {0, 1, 0, 1, 0, 0, 0xFFFFF},            {0, 1, 0, 1, 0, SILICON_ARENA, 0x00001},
    };
    if (number < SILICON_SPECIAL_SEGMENTS || number >= SILICON_SEGMENT_COUNT) return 0;
    unsigned index = number - SILICON_SPECIAL_SEGMENTS;
    segment->contents = special[index].contents;
    segment->seg_32bit = special[index].is_wide;
    segment->read_exec_only = special[index].is_limited;
    segment->limit_in_pages = special[index].in_pages;
    segment->seg_not_present = special[index].is_absent;
    segment->base_addr = special[index].base;
    segment->limit = special[index].limit;
    return 1;
}

uint64_t silicon_descriptor(uint32_t number) {
    struct user_desc s;
    if (!describe_segment(number, &s)) return 0;
    // Linux marks them as accessed.
    uint64_t access = 0xF1u | (!s.read_exec_only << 1) | s.contents << 2;
    if (s.seg_not_present) access &= ~0x80ull;
    uint64_t flags = (uint64_t)s.useable | (uint64_t)s.seg_32bit << 2 | (uint64_t)s.limit_in_pages << 3;
    return (s.limit & 0xFFFF) | (uint64_t)(s.base_addr & 0xFFFFFF) << 16 | access << 40 | (uint64_t)(s.limit >> 16 & 15) << 48 | flags << 52 |
           (uint64_t)(s.base_addr >> 24) << 56;
}

// Segments that are not flat, if this kernel lets programs have them.
static uint32_t make_segments(void) {
    for (unsigned number = 2; number < SILICON_SEGMENT_COUNT; number++) {
        struct user_desc segment;
        if (describe_segment(number, &segment) && syscall(SYS_modify_ldt, 0x11, &segment, sizeof segment) != 0) return 0;
    }
    return 1;
}

static int wait_for(uint32_t *word, uint32_t old, int seconds) {
    struct timespec limit = {.tv_sec = seconds};
    return (int)syscall(SYS_futex, word, FUTEX_WAIT, old, &limit, NULL, 0);
}
static void wake(uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0); }

static void serve(pid_t parent, int descriptor) {
    static uint8_t signal_stack[1 << 16];
    stack_t stack = {.ss_sp = signal_stack, .ss_size = sizeof signal_stack};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_sigaction = take_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) sigaction(numbers[i], &action, NULL);

    void *code = mmap((void *)(uintptr_t)SILICON_CODE, SILICON_CODE_PAGES * 4096, PROT_READ | PROT_EXEC,
                      MAP_SHARED | MAP_FIXED_NOREPLACE, descriptor,
                      (off_t)__builtin_offsetof(struct silicon_shared, code));
    // Each case has its pattern copied in, but for the read-only page: it holds the first pattern's.
    void *arena = mmap((void *)(uintptr_t)SILICON_ARENA, SILICON_ARENA_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (code != (void *)(uintptr_t)SILICON_CODE || arena != (void *)(uintptr_t)SILICON_ARENA) _exit(98);

    uint8_t *gate = mmap((void *)(uintptr_t)SILICON_GATE, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (gate == (void *)(uintptr_t)SILICON_GATE) {
        uint64_t target = (uint64_t)(uintptr_t)silicon_leave;
        memcpy(gate + SILICON_GATE_POINTER, &target, sizeof target);
        silicon_write_exit(gate);
        served->fs_selector = silicon_fs_selector = make_segment(0);
        served->gs_selector = silicon_gs_selector = make_segment(1);
        served->has_segments = make_segments();
    }

    find_components();
    uint32_t done = 0;
    int is_prepared = 0;
    for (;;) {
        uint32_t requested = __atomic_load_n(&served->requested, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&served->is_closed, __ATOMIC_SEQ_CST)) _exit(0);
        if (requested == done) {
            wait_for(&served->requested, done, 1);
            if (getppid() != parent) _exit(0);
            continue;
        }
        if (!is_prepared) {
            is_prepared = 1;
            uint8_t *page = (uint8_t *)(uintptr_t)SILICON_ARENA + SILICON_ARENA_READ_ONLY_PAGE * 4096;
            memcpy(page, served->patterns[0] + SILICON_ARENA_READ_ONLY_PAGE * 4096, 4096);
            mprotect(page, 4096, PROT_READ);
        }
        // The code was written by another process: serialise before running it (SDM Vol. 3, 8.1.3).
        uint32_t a = 0, b, c = 0, d;
        __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d) : : "memory");
        for (uint32_t i = 0; i < served->count && i < SILICON_CASES; i++) {
            __atomic_store_n(&served->running, i, __ATOMIC_SEQ_CST);
            run_case(&served->cases[i]);
        }
        done = requested;
        __atomic_store_n(&served->completed, done, __ATOMIC_SEQ_CST);
        wake(&served->completed);
    }
}

// MARK: The side that asks

struct silicon silicon_start(void) {
    struct silicon result = {NULL, -1};
    int descriptor = memfd_create("silicon", MFD_CLOEXEC);
    if (descriptor < 0) return result;
    if (ftruncate(descriptor, sizeof(struct silicon_shared)) != 0) {
        close(descriptor);
        return result;
    }
    void *shared = mmap(NULL, sizeof(struct silicon_shared), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (shared == MAP_FAILED) {
        close(descriptor);
        return result;
    }
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0) {
        served = shared;
        serve(parent, descriptor);
        _exit(0);
    }
    close(descriptor);
    if (pid < 0) {
        munmap(shared, sizeof(struct silicon_shared));
        return result;
    }
    result.shared = shared;
    result.pid = pid;
    return result;
}

int silicon_run(struct silicon *silicon, uint32_t count) {
    struct silicon_shared *shared = silicon->shared;
    shared->count = count;
    uint32_t number = __atomic_add_fetch(&shared->requested, 1, __ATOMIC_SEQ_CST);
    wake(&shared->requested);
    for (int seconds = 0; seconds < 30; seconds++) {
        for (;;) {
            uint32_t completed = __atomic_load_n(&shared->completed, __ATOMIC_SEQ_CST);
            if (completed == number) return 1;
            if (wait_for(&shared->completed, completed, 1) != 0 && errno == ETIMEDOUT) break;
        }
        int status;
        if (waitpid(silicon->pid, &status, WNOHANG) == silicon->pid) {
            silicon->pid = -1;
            return 0;
        }
    }
    return 0;
}

void silicon_stop(struct silicon *silicon) {
    if (!silicon->shared) return;
    __atomic_store_n(&silicon->shared->is_closed, 1, __ATOMIC_SEQ_CST);
    wake(&silicon->shared->requested);
    if (silicon->pid > 0) {
        // The bump that makes it look.
        kill(silicon->pid, SIGKILL);
        waitpid(silicon->pid, NULL, 0);
    }
    munmap(silicon->shared, sizeof(struct silicon_shared));
    silicon->shared = NULL;
}
