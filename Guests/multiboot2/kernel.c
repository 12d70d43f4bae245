// A multiboot 2 kernel that prints how it was entered and every tag it was given, one `name=value` a line, on the first
// serial port; and ends the machine by a byte to the debug exit port 0xf4, or halts with interrupts off.
// It is built in four shapes: ELF32, the same as ELF64, a flat file whose header has an address tag, and one that wants to
// lie as high as it may, which no instruction of it minds.
#include <elf.h>

#include "../kernel.h"

// Hidden: found from where the code is, and not by a table of addresses as they were linked.
#pragma GCC visibility push(hidden)
extern char load_start[], load_end[], bss_end[], start[];
#pragma GCC visibility pop

// Type and flags of a header tag, and its size. Each is followed by its fields, and starts at a multiple of eight.
#define OPTIONAL (1 << 16)
struct header_tag {
    uint32_t type, size;
};

// In a section of its own, which the linker script puts first, behind some bytes so that its place is not 0.
__attribute__((section(".multiboot"), used, aligned(8))) static const struct {
    uint32_t padding[4], magic, architecture, length, checksum;
    struct header_tag request;
    uint32_t requests[5], request_padding;
    struct header_tag alignment_of_modules, screen;
    uint32_t width, height, depth, screen_padding;
    struct header_tag unknown;
#ifdef FLAT
    struct header_tag addresses;
    const void *header, *load, *load_end, *bss_end;
    struct header_tag entry;
    const void *entry_address;
    uint32_t entry_padding;
#endif
#ifdef MOVED
    struct header_tag relocatable;
    uint32_t lowest, highest, alignment, preference;
#endif
    struct header_tag end;
} header = {
    .padding = {0x90909090, 0x90909090, 0x90909090, 0x90909090},
    .magic = 0xE85250D6, .length = sizeof header - 16, .checksum = -(0xE85250D6 + (sizeof header - 16)),
    // Command line, modules, memory, memory map, sections.
    .request = {1, 28}, .requests = {1, 3, 4, 6, 9},
    .alignment_of_modules = {6, 8},
    // Wishes that may stay open: a screen, and what nobody knows.
    .screen = {5 | OPTIONAL, 20}, .width = 80, .height = 25,
    .unknown = {77 | OPTIONAL, 8},
#ifdef FLAT
    .addresses = {2, 24}, .header = &header.magic, .load = load_start, .load_end = load_end, .bss_end = bss_end,
    .entry = {3, 12}, .entry_address = start,
#endif
#ifdef MOVED
    .relocatable = {10, 24}, .lowest = 0x400000, .highest = 0x2FFFFFF, .alignment = 0x100000, .preference = 2,
#endif
    .end = {0, 8},
};

struct tag {
    uint32_t type, size, words[];
};
struct map_entry {
    uint64_t base, length;
    uint32_t type, reserved;
};

// What must be cleared, what must be loaded, and found among the symbols.
static volatile uint32_t zeros[3000], loaded = 0x600DDA7A;
uint32_t known_symbol __attribute__((visibility("hidden"))) = 1;

static void word(const char *name, uint32_t value) { field(name, value, 8); }

// By the addresses that the loader has put into the table.
static void print_sections(const struct tag *tag)
{
    const uint8_t *table = (const uint8_t *)&tag->words[3];
    uint32_t found = 0;
    word("entsize", tag->words[1]);
    for (uint32_t i = 0; i < tag->words[0]; i++) {
#define SEARCH(bits)                                                                                                   \
    const Elf##bits##_Shdr *at = (const void *)(table + i * tag->words[1]);                                            \
    if (at->sh_type != SHT_SYMTAB) continue;                                                                           \
    const Elf##bits##_Shdr *strings = (const void *)(table + at->sh_link * tag->words[1]);                             \
    const Elf##bits##_Sym *symbols = (const void *)(uint32_t)at->sh_addr;                                              \
    for (uint32_t j = 0; j < at->sh_size / sizeof *symbols; j++)                                                       \
        if (find((const char *)(uint32_t)strings->sh_addr + symbols[j].st_name, "known_symbol"))                       \
            found = (uint32_t)symbols[j].st_value
        if (tag->words[1] == sizeof(Elf64_Shdr)) {
            SEARCH(64);
        } else {
            SEARCH(32);
        }
    }
    // As it is linked, wherever it lies.
    const char *linked = (const char *)0x200000;
    word("symbol", found == (uint32_t)linked + ((uint32_t)&known_symbol - (uint32_t)load_start));
}

static void describe(const struct tag *tag)
{
    for (; tag->type; tag = (const struct tag *)((uint32_t)tag + ((tag->size + 7) & ~7u))) {
        word("tag", tag->type);
        switch (tag->type) {
        case 1: text("cmdline", (const char *)tag->words); break;
        case 2: text("boot_loader_name", (const char *)tag->words); break;
        case 3:
            word("mod_start", tag->words[0]), word("mod_size", tag->words[1] - tag->words[0]);
            text("mod_string", (const char *)&tag->words[2]);
            word("mod_sum", sum((const uint8_t *)tag->words[0], (const uint8_t *)tag->words[1]));
            break;
        case 4: word("mem_lower", tag->words[0]), word("mem_upper", tag->words[1]); break;
        case 6: {
            word("entry_size", tag->words[0]), word("entry_version", tag->words[1]);
            const struct map_entry *end = (const struct map_entry *)((uint32_t)tag + tag->size);
            for (const struct map_entry *at = (const void *)&tag->words[2]; at < end; at++)
                range("mmap", at->base, at->length, at->type);
            break;
        }
        case 9: print_sections(tag); break;
        case 14:
        case 15: {
            // "RSD PTR ", and the sum over all of it, which is 0.
            uint8_t total = 0;
            for (uint32_t i = 0; i < tag->size - 8; i++) total += ((const uint8_t *)tag->words)[i];
            word("rsdp_size", tag->size - 8), word("rsdp", tag->words[0]), word("rsdp_sum", total);
            break;
        }
        case 21: word("load_base", tag->words[0]), word("lies_at", (uint32_t)load_start); break;
        }
    }
    word("end_size", tag->size);
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
    uint32_t any = 0;
    for (int i = 0; i < 3000; i++) any |= zeros[i];
    word("bss", any), word("data", loaded);
    const uint32_t *info = (const uint32_t *)state->ebx;
    word("aligned", state->ebx % 8 == 0), word("reserved", info[1]);
    describe((const struct tag *)(info + 2));
    print("end\n");
    out8(0xF4, 21);
}

__asm__(".globl start\nstart:\n"
        "mov %eax, %esi\n mov $0x80000, %esp\n call 1f\n1: pop %ecx\n lea stack_end-1b(%ecx), %esp\n"
        "push %ss\n push %gs\n push %fs\n push %es\n push %ds\n push %cs\n"
        "mov %cr0, %ecx\n push %ecx\n pushf\n push %ebx\n push %esi\n"
        "push %esp\n call run\n"
        "1: cli\n hlt\n jmp 1b\n"
        ".bss\n .align 16\n .skip 4096\nstack_end:\n.text\n");
