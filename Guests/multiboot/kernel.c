// A multiboot 1 kernel that prints how it was entered and every field it was given, one `name=value` a line, on the
// first serial port; then what the firmware configuration ports say; and ends the machine as its command line asks:
//   exit=V            a byte V to the debug exit port 0xf4
//   exit16=, exit32=  the same as a word or a double word
//   spin              loops for ever after that; without it, it halts with interrupts off
// It is built in three shapes: ELF32, the same as ELF64, and a flat file whose header has the address fields.
#include <stdint.h>

#ifdef FLAT
enum { FLAGS = 0x10003 };
#else
enum { FLAGS = 0x00003 };
#endif

extern char load_start[], load_end[], bss_end[], start[];

// In a section of its own, which the linker script puts first, behind some bytes so that its place is not 0.
__attribute__((section(".multiboot"), used)) static const struct {
    uint32_t padding[4], magic, flags, checksum;
#ifdef FLAT
    const void *header, *load, *load_end, *bss_end, *entry;
#endif
} header = {
    {0x90909090, 0x90909090, 0x90909090, 0x90909090}, 0x1BADB002, FLAGS, -(0x1BADB002 + FLAGS),
#ifdef FLAT
    &header.magic, load_start, load_end, bss_end, start,
#endif
};

struct information {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length, mmap_addr,
        drives_length, drives_addr, config_table, boot_loader_name, apm_table, vbe[4], framebuffer[7];
};
struct module {
    uint32_t start, end, string, reserved;
};
struct __attribute__((packed)) range {
    uint32_t size;
    uint64_t base, length;
    uint32_t type;
};

// What must be cleared, and what must be loaded.
static volatile uint32_t zeros[3000], loaded = 0x600DDA7A;

static inline void out8(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out16(uint16_t port, uint16_t value) { __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out32(uint16_t port, uint32_t value) { __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }
static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static void put(char c)
{
    while (!(in8(0x3FD) & 0x20)) {
    }
    out8(0x3F8, (uint8_t)c);
}
static void print(const char *text)
{
    while (*text) put(*text++);
}
static void hex(uint32_t value, int digits)
{
    while (digits--) put("0123456789abcdef"[value >> (4 * digits) & 15]);
}
static void field(const char *name, uint32_t value)
{
    print(name), print("=0x"), hex(value, 8), put('\n');
}
static void text(const char *name, uint32_t at)
{
    print(name), put('='), print((const char *)at), put('\n');
}
static void wide(uint64_t value) { print("0x"), hex((uint32_t)(value >> 32), 8), hex((uint32_t)value, 8); }

static uint32_t sum(uint32_t from, uint32_t to)
{
    uint32_t sum = 0;
    for (const uint8_t *at = (const uint8_t *)from; at < (const uint8_t *)to; at++) sum = sum * 31 + *at;
    return sum;
}

static void describe(const struct information *info)
{
    field("flags", info->flags);
    field("mem_lower", info->mem_lower), field("mem_upper", info->mem_upper);
    field("boot_device", info->boot_device);
    if (info->flags & 4) text("cmdline", info->cmdline);
    if (info->flags & 8) field("mods_count", info->mods_count);
    const struct module *module = (const struct module *)info->mods_addr;
    for (uint32_t i = 0; i < info->mods_count; i++, module++) {
        field("mod_start", module->start), field("mod_size", module->end - module->start);
        text("mod_string", module->string), field("mod_reserved", module->reserved);
        field("mod_sum", sum(module->start, module->end));
    }
    for (int i = 0; i < 4; i++) field("syms", info->syms[i]);
    for (uint32_t at = info->mmap_addr, end = at + info->mmap_length; at < end;) {
        const struct range *range = (const struct range *)at;
        print("mmap="), wide(range->base), put('+'), wide(range->length), put(':'), hex(range->type, 1), put('\n');
        at += range->size + 4;
    }
    field("drives_length", info->drives_length), field("drives_addr", info->drives_addr);
    field("config_table", info->config_table);
    if (info->flags & 1 << 9) text("boot_loader_name", info->boot_loader_name);
    field("apm_table", info->apm_table);
    for (int i = 0; i < 4; i++) field("vbe", info->vbe[i]);
    for (int i = 0; i < 7; i++) field("framebuffer", info->framebuffer[i]);
}

static void configuration(const char *name, uint16_t key, int count)
{
    out16(0x510, key);
    print(name), put('=');
    while (count--) hex(in8(0x511), 2);
    put('\n');
}

static const char *find(const char *line, const char *word)
{
    for (; *line; line++) {
        int i = 0;
        while (word[i] && line[i] == word[i]) i++;
        if (!word[i]) return line + i;
    }
    return 0;
}
static uint32_t number(const char *at)
{
    uint32_t value = 0;
    for (; *at >= '0' && *at <= '9'; at++) value = value * 10 + (uint32_t)(*at - '0');
    return value;
}

struct entry_state {
    uint32_t eax, ebx, eflags, cr0, cs, ds, es, fs, gs, ss;
};

void run(const struct entry_state *state)
{
    field("eax", state->eax);
    field("eflags", state->eflags & 0x20200);
    field("cr0", state->cr0 & 0x80000001);
    uint32_t rights, limit;
    const uint32_t selectors[] = {state->cs, state->ds, state->es, state->fs, state->gs, state->ss};
    for (int i = 0; i < 6; i++) {
        __asm__("lar %2, %0\n lsl %2, %1" : "=r"(rights), "=r"(limit) : "r"(selectors[i]));
        field("rights", rights & 0xC0FE00), field("limit", limit);
    }
    // With A20 closed the two would be one.
    volatile uint32_t *low = (volatile uint32_t *)0x500, *high = (volatile uint32_t *)0x100500;
    uint32_t was = *high;
    *low = 0x12345678, *high = 0x9ABCDEF0;
    field("a20", *low == 0x12345678);
    *high = was;
    uint32_t any = 0;
    for (int i = 0; i < 3000; i++) any |= zeros[i];
    field("bss", any), field("data", loaded);

    const struct information *info = (const struct information *)state->ebx;
    describe(info);
    configuration("fw_signature", 0, 6), configuration("fw_interface", 1, 4), configuration("fw_uuid", 2, 16);
    configuration("fw_memory", 3, 8), configuration("fw_processors", 5, 2), configuration("fw_most", 15, 2);
    configuration("fw_files", 0x19, 4), configuration("fw_nothing", 0x7FF, 4);
    print("end\n");

    const char *line = (const char *)info->cmdline, *at;
    if ((at = find(line, "exit="))) out8(0xF4, (uint8_t)number(at));
    if ((at = find(line, "exit16="))) out16(0xF4, (uint16_t)number(at));
    if ((at = find(line, "exit32="))) out32(0xF4, number(at));
    if (find(line, "spin"))
        for (;;) {
        }
}

__asm__(".globl start\nstart:\n"
        "mov $stack_end, %esp\n"
        "push %ss\n push %gs\n push %fs\n push %es\n push %ds\n push %cs\n"
        "mov %cr0, %ecx\n push %ecx\n pushf\n push %ebx\n push %eax\n"
        "push %esp\n call run\n"
        "1: cli\n hlt\n jmp 1b\n"
        ".bss\n .align 16\n .skip 4096\nstack_end:\n.text\n");
