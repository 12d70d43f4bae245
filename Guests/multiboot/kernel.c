// A multiboot 1 kernel that prints how it was entered and every field it was given, one `name=value` a line, on the
// first serial port; then what the firmware configuration ports say; and ends the machine as its command line asks:
//   exit=V            a byte V to the debug exit port 0xf4
//   exit16=, exit32=  the same as a word or a double word
//   spin              loops for ever after that; without it, it halts with interrupts off
// It is built in three shapes: ELF32, the same as ELF64, and a flat file whose header has the address fields.
#include "../kernel.h"

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
struct __attribute__((packed)) map_entry {
    uint32_t size;
    uint64_t base, length;
    uint32_t type;
};

// What must be cleared, and what must be loaded.
static volatile uint32_t zeros[3000], loaded = 0x600DDA7A;

static void word(const char *name, uint32_t value) { field(name, value, 8); }
static void string(const char *name, uint32_t at) { text(name, (const char *)at); }

static void describe(const struct information *info)
{
    word("flags", info->flags);
    word("mem_lower", info->mem_lower), word("mem_upper", info->mem_upper);
    word("boot_device", info->boot_device);
    if (info->flags & 4) string("cmdline", info->cmdline);
    if (info->flags & 8) word("mods_count", info->mods_count);
    const struct module *module = (const struct module *)info->mods_addr;
    for (uint32_t i = 0; i < info->mods_count; i++, module++) {
        word("mod_start", module->start), word("mod_size", module->end - module->start);
        string("mod_string", module->string), word("mod_reserved", module->reserved);
        word("mod_sum", sum((const uint8_t *)module->start, (const uint8_t *)module->end));
    }
    for (int i = 0; i < 4; i++) word("syms", info->syms[i]);
    for (uint32_t at = info->mmap_addr, end = at + info->mmap_length; at < end;) {
        const struct map_entry *entry = (const struct map_entry *)at;
        range("mmap", entry->base, entry->length, entry->type);
        at += entry->size + 4;
    }
    word("drives_length", info->drives_length), word("drives_addr", info->drives_addr);
    word("config_table", info->config_table);
    if (info->flags & 1 << 9) string("boot_loader_name", info->boot_loader_name);
    word("apm_table", info->apm_table);
    for (int i = 0; i < 4; i++) word("vbe", info->vbe[i]);
    for (int i = 0; i < 7; i++) word("framebuffer", info->framebuffer[i]);
}

static void configuration(const char *name, uint16_t key, int count)
{
    out16(0x510, key);
    print(name), put('=');
    while (count--) hex(in8(0x511), 2);
    put('\n');
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
    word("eax", state->eax);
    word("eflags", state->eflags & 0x20200);
    word("cr0", state->cr0 & 0x80000001);
    segments(state->cs, state->ds, state->es, state->fs, state->gs, state->ss);
    // With A20 closed the two would be one.
    volatile uint32_t *low = (volatile uint32_t *)0x500, *high = (volatile uint32_t *)0x100500;
    uint32_t was = *high;
    *low = 0x12345678, *high = 0x9ABCDEF0;
    word("a20", *low == 0x12345678);
    *high = was;
    uint32_t any = 0;
    for (int i = 0; i < 3000; i++) any |= zeros[i];
    word("bss", any), word("data", loaded);

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
